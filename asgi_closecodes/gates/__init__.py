"""Load gates: who may come in. Compose them with :class:`AllOf`, or write your own."""

from .base import AllOf, Gate, Shadow
from .cluster import ClusterSessions, ClusterSessionsPerKey
from .handshakes import HandshakeRate, HandshakesInProgress
from .pressure import Pressure
from .sensors import Cpu, LoopLag, Memory, Sensor
from .sessions import MaxSessions, MaxSessionsPerKey, client_network

__all__ = [
    "AllOf",
    "ClusterSessions",
    "ClusterSessionsPerKey",
    "Cpu",
    "Gate",
    "HandshakeRate",
    "HandshakesInProgress",
    "LoopLag",
    "MaxSessions",
    "MaxSessionsPerKey",
    "Memory",
    "Pressure",
    "Sensor",
    "Shadow",
    "client_network",
]
