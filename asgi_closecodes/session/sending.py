"""A session that remembers what ``send`` waits for, so that somebody may notice that it waits for too long."""

from __future__ import annotations

import array
from collections.abc import Awaitable
from typing import Any

from starlette.types import Message

from .session import Session

_MAX_HOPS = 6
"""Objects between a server's ``send`` and its socket; hypercorn has three."""


def unsent_bytes(session: Session) -> int | None:
    """Return the bytes that the peer's system has not taken yet; None if that is unknown, as on Windows.

    Fewer of them are the only sign that a slow peer reads: a server's ``send`` may wait for minutes until there is
    room for a whole message again.
    """
    size = array.array("i", [0])
    try:
        from fcntl import ioctl  # noqa: PLC0415 - not on every system
        from termios import TIOCOUTQ  # noqa: PLC0415

        ioctl(_socket_of(session._send).fileno(), TIOCOUTQ, size)  # noqa: SLF001 - its own kind
    except Exception:  # it is closed, or no socket at all
        return None
    return size[0]


def _socket_of(send: Any) -> Any:
    """Return the socket that a server's ``send`` leads to by public attributes, or None."""
    for _ in range(_MAX_HOPS):
        owner = getattr(send, "__self__", None)
        if isinstance(owner, Session):  # another middleware of this library stands around
            send = owner._send  # noqa: SLF001 - its own kind
            continue
        transport = getattr(owner, "transport", None) or getattr(getattr(owner, "writer", None), "transport", None)
        if transport is not None:
            return transport.get_extra_info("socket")
        stream = getattr(owner, "stream", None)
        if (socket := getattr(getattr(stream, "transport_stream", stream), "socket", None)) is not None:
            return socket
        send = getattr(owner, "send", None)
    return None


class SendRememberingSession(Session):
    """A session whose handler begins where ``send_timeout`` is set."""

    __slots__ = ()

    _remembers_sends = True

    # Not by calling the other _send_on: that call alone takes longer than all that is allowed.
    def _send_on(self, message: Message) -> Awaitable[None]:
        if message["type"] == "websocket.send" and (deliver := self._deliver) is not None:
            self.sent += 1
            self.sending = sending = deliver(message)
            return sending
        self.sending = sending = self._control(message)
        return sending


def is_pending(awaitable: object) -> bool:
    """Whether ``awaitable`` is waited for, and has not ended; False where it does not tell.

    It is a coroutine mostly; Cython's know no ``cr_suspended``, and granian returns an object like a future.
    """
    try:
        if (is_suspended := getattr(awaitable, "cr_suspended", None)) is not None:
            return bool(is_suspended)
        if hasattr(awaitable, "cr_await"):
            return awaitable.cr_await is not None
        done = getattr(awaitable, "done", None)
        return callable(done) and done() is False
    except Exception:  # whatever a server or another middleware has returned
        return False
