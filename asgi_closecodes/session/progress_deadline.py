"""Time that a peer has for a close: more while it reads what was sent before.

A slow peer takes minutes for a last large message. Without this middleware, the server would deliver it all.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Connection


class ProgressDeadline:
    """Decides when to drop a connection after its close.

    :param seconds: time for a close. A peer that reads something in its second half gets more.
    :param until: monotonic seconds of the end for a peer that goes on reading.
    :param since: monotonic seconds of the beginning of the close.
    """

    __slots__ = ("_connection", "_due", "_has_begun", "_seconds", "_unsent", "_until")

    def __init__(self, connection: Connection, seconds: float, until: float, since: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._until = until
        self._due = since + seconds
        self._has_begun = False
        self._unsent = 0

    @property
    def check_at(self) -> float:
        """Monotonic seconds of the next useful call of :meth:`is_over`."""
        return self._due if self._has_begun else self._due - self._seconds / 2

    def is_over(self, now: float) -> bool:
        """Whether to drop the connection now."""
        if not self._has_begun and now >= self.check_at:
            self._has_begun = True
            if self._measure() and self._until > self._due:
                self._due = max(self._due, now + self._seconds / 2)  # its close may have waited all that time
        if now < self._due:
            return False
        if now < self._until and (before := self._unsent) and 0 < self._measure() < before:
            self._due = min(now + self._seconds, self._until)
            return False
        return True

    def _measure(self) -> int:
        self._unsent = self._connection.unsent or 0
        return self._unsent


class AbortTimer:
    """Timer that aborts an asyncio connection after its ``deadline``, unless it is gone by then.

    :raises RuntimeError: if no event loop of asyncio runs.
    """

    __slots__ = ("_connection", "_deadline", "_is_closed_here", "_timer")

    def __init__(self, connection: Connection, deadline: ProgressDeadline, *, is_closed_here: bool) -> None:
        self._connection = connection
        self._deadline = deadline
        self._is_closed_here = is_closed_here
        self._arm(asyncio.get_running_loop())

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(max(self._deadline.check_at - time.monotonic(), 0.0), self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._connection.is_held(is_closed_here=self._is_closed_here):
            return
        if self._deadline.is_over(time.monotonic()):
            self._connection.abort()
        else:
            self._arm(loop)

    def cancel(self) -> None:
        """Stop the timer."""
        self._timer.cancel()
