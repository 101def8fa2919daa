"""One WebSocket connection: its phases, its channel, and its one close."""

from .closing import Rules
from .departure import Departures
from .sending import SendRememberingSession, is_pending
from .session import Session, session_of
from .state import Phase

__all__ = [
    "Departures",
    "Phase",
    "Rules",
    "SendRememberingSession",
    "Session",
    "is_pending",
    "session_of",
]
