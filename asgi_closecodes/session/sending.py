"""Session that remembers the awaitable of its last ``send``, for ``send_timeout`` to check."""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import Message

from .session import Session


class SendRememberingSession(Session):
    """Session whose handler starts while ``send_timeout`` is set."""

    __slots__ = ()

    _remembers_sends = True

    # Not by calling the base's _send_on: that call would cost more than all the rest.
    def _send_on(self, message: Message) -> Awaitable[None]:
        if message["type"] == "websocket.send" and (deliver := self._deliver) is not None:
            self.sent += 1
            self.sending = sending = deliver(message)
            return sending
        self.sending = sending = self._control(message)
        return sending


def is_pending(awaitable: object) -> bool:
    """Whether somebody waits for ``awaitable`` and it has not ended; False if that is unknown.

    It is mostly a coroutine. Cython's have no ``cr_suspended``, and granian returns an object like a future.
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
