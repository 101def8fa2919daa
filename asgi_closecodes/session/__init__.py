"""One WebSocket connection: its phases, its channel, and its one close."""

from .session import Rules, Session, session_of
from .state import Phase

__all__ = [
    "Phase",
    "Rules",
    "Session",
    "session_of",
]
