"""One WebSocket connection: its phases, its channel, and its one close."""

from .closing import Rules
from .departure import Departures
from .scope import can_deny, client_of, offered_subprotocols
from .sending import SendRememberingSession, is_pending
from .session import Session, session_of
from .state import Phase

__all__ = [
    "Departures",
    "Phase",
    "Rules",
    "SendRememberingSession",
    "Session",
    "can_deny",
    "client_of",
    "is_pending",
    "offered_subprotocols",
    "session_of",
]
