"""Time of each session's last message, found by its count of messages every 5 s: a message costs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

import anyio.lowlevel

from asgi_closecodes.session import Session

ACTIVITY_INTERVAL_S = 5.0
"""Seconds between two updates: a last message is known as exactly as that."""

_SESSIONS_A_TURN = 500
"""Sessions whose count is read in one turn of the event loop."""


class Activity:
    """Times at which the counts of messages were last seen to change.

    :param clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_seen")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: WeakKeyDictionary[Session, tuple[int, float]] = WeakKeyDictionary()  # messages, and since when

    async def update(self, sessions: Iterable[Session]) -> None:
        """Note the sessions that had messages since the last update; other tasks run meanwhile."""
        now = self._clock()
        before, self._seen = self._seen, WeakKeyDictionary()
        for number, session in enumerate([*sessions], 1):
            count = session.message_count
            seen = before.get(session)
            self._seen[session] = seen if seen is not None and seen[0] == count else (count, now)
            if number % _SESSIONS_A_TURN == 0:
                await anyio.lowlevel.checkpoint()

    def last_message_at(self, session: Session) -> float:
        """Return when ``session`` had its last message, or when it arrived if no update has seen it yet."""
        seen = self._seen.get(session)
        return session.arrived_at if seen is None else seen[1]
