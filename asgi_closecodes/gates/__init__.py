"""Load gates: who may come in. Compose them with :class:`AllOf`, or write your own."""

from .base import AllOf, Gate
from .sessions import MaxSessions, MaxSessionsPerKey, client_network

__all__ = ["AllOf", "Gate", "MaxSessions", "MaxSessionsPerKey", "client_network"]
