"""One WebSocket connection: its phases, its channel, and its one close."""

from .closing import Rules
from .departure import Departures
from .message_rate import MessageRate, limit_messages
from .sending import SendRememberingSession, is_pending
from .session import Session, session_of
from .state import Phase

__all__ = [
    "Departures",
    "MessageRate",
    "Phase",
    "Rules",
    "SendRememberingSession",
    "Session",
    "is_pending",
    "limit_messages",
    "session_of",
]
