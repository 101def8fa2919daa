"""Load gates decide which sessions are admitted. Compose them with :class:`AllOf`, or write your own."""

from .all_of import AllOf
from .base import Gate, GateBase
from .cluster import ClusterSessions, ClusterSessionsPerKey
from .handshakes import HandshakeRate, HandshakesInProgress
from .per_key import MaxSessionsPerKey, client_network
from .pressure import Pressure
from .sensors import Cpu, LoopLag, Memory, Sensor
from .sessions import MaxSessions
from .shadow import Shadow

__all__ = [
    "AllOf",
    "ClusterSessions",
    "ClusterSessionsPerKey",
    "Cpu",
    "Gate",
    "GateBase",
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
