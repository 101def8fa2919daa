"""One WebSocket connection: its phases, its channel, and its one close."""

from .departure import Departures
from .sending import SendRememberingSession, is_pending
from .session import Rules, Session, session_of
from .socket import is_lost, link_of, unsent_bytes
from .state import Phase

__all__ = [
    "Departures",
    "Phase",
    "Rules",
    "SendRememberingSession",
    "Session",
    "is_lost",
    "is_pending",
    "link_of",
    "session_of",
    "unsent_bytes",
]
