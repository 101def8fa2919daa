"""Phases of a session, and the messages of its handler that lead from one to the next."""

from __future__ import annotations

import enum

from asgi_closecodes import events


class Phase(enum.Enum):
    """Phase of a session."""

    ARRIVED = "the handshake has come, its connect event was not received yet", "connecting"
    CONNECTING = "the handshake waits for an answer", "connecting"
    OPEN = "the handshake was accepted, and nobody has closed", "open"
    DENYING = "an HTTP response to the handshake has started", "closed"
    CLOSED = "this side has closed", "closed"
    DISCONNECTED = "the peer is gone", "closed"

    __hash__ = object.__hash__  # C code; an Enum's own is Python code

    def __init__(self, sentence: str, public: events.Phase) -> None:
        self.sentence = sentence
        self.public = public
        """Name of the phase in events and logs."""


_ANSWERS = {
    "websocket.accept": Phase.OPEN,
    "websocket.close": Phase.CLOSED,
    "websocket.http.response.start": Phase.DENYING,
}

UNANSWERED = (Phase.ARRIVED, Phase.CONNECTING)

OVER = (Phase.CLOSED, Phase.DISCONNECTED)

TRANSITIONS: dict[Phase, dict[str, Phase]] = {
    Phase.ARRIVED: _ANSWERS,
    Phase.CONNECTING: _ANSWERS,
    Phase.OPEN: {"websocket.send": Phase.OPEN, "websocket.close": Phase.CLOSED},
    Phase.DENYING: {"websocket.http.response.body": Phase.DENYING},
    Phase.CLOSED: {},
}
"""Messages that the handler may send in each phase, and the next phase (ASGI specification, WebSocket).

After :attr:`Phase.DISCONNECTED` the server decides: ASGI lets ``send`` raise an OSError or do nothing.
"""
