"""Load gates decide which sessions are admitted. Compose them with :class:`AllOf`, or write your own."""

from typing import TYPE_CHECKING

from .all_of import AllOf
from .base import Gate, GateBase
from .handshakes import HandshakeRate, HandshakesInProgress
from .per_key import MaxSessionsPerKey, client_network
from .pressure import Pressure
from .sensors import Cpu, LoopLag, Memory, Sensor
from .sessions import MaxSessions
from .shadow import Shadow

if TYPE_CHECKING:
    from .cluster import ClusterSessions, ClusterSessionsPerKey

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

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import the gates of a cluster for who asks for them: a tenth of the package's import."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import cluster  # noqa: PLC0415

        return vars(cluster)[name]
