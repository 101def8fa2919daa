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


# By themselves, since a look into an Enum takes a thousand instructions on Python 3.11.
ARRIVED, CONNECTING, OPEN, DENYING, CLOSED, DISCONNECTED = Phase

_ANSWERS = {
    "websocket.accept": OPEN,
    "websocket.close": CLOSED,
    "websocket.http.response.start": DENYING,
}

UNANSWERED = (ARRIVED, CONNECTING)

OVER = (CLOSED, DISCONNECTED)

TRANSITIONS: dict[Phase, dict[str, Phase]] = {
    ARRIVED: _ANSWERS,
    CONNECTING: _ANSWERS,
    OPEN: {"websocket.send": OPEN, "websocket.close": CLOSED},
    DENYING: {"websocket.http.response.body": DENYING},
    CLOSED: {},
}
"""Messages that the handler may send in each phase, and the next phase (ASGI specification, WebSocket).

After :attr:`Phase.DISCONNECTED` the server decides: ASGI lets ``send`` raise an OSError or do nothing.
"""
