"""One WebSocket connection: its phases, its channel, and its one close."""

from .closing import Rules
from .departure import Departures
from .message_rate import MessageRate, limit_messages
from .scope import can_deny, client_of, offered_subprotocols
from .sending import SendRememberingSession, is_pending
from .session import Session
from .state import Phase

__all__ = [
    "Departures",
    "MessageRate",
    "Phase",
    "Rules",
    "SendRememberingSession",
    "Session",
    "can_deny",
    "client_of",
    "is_pending",
    "limit_messages",
    "offered_subprotocols",
]
