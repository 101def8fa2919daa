"""One WebSocket connection: its phases, its channel, and its one close."""

from .sending import SendRememberingSession, is_pending, unsent_bytes
from .session import Rules, Session, session_of
from .state import Phase

__all__ = [
    "Phase",
    "Rules",
    "SendRememberingSession",
    "Session",
    "is_pending",
    "session_of",
    "unsent_bytes",
]
