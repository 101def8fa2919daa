"""Time of each session's last message: looked at now and then, so that a message costs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

import anyio.lowlevel

from asgi_closecodes.session import Session

LOOK_INTERVAL_S = 5.0
"""Seconds between two looks: a last message is known as exactly as that."""

_LOOKS_A_TURN = 500
"""Sessions that are looked at in one turn of the event loop."""


class Activity:
    """Finds out by looks at the counts of messages.

    :param clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_seen")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: WeakKeyDictionary[Session, tuple[int, float]] = WeakKeyDictionary()  # messages, and since when

    async def look(self, sessions: Iterable[Session]) -> None:
        """Take note of who has had messages since the last look; other tasks run meanwhile."""
        now = self._clock()
        before, self._seen = self._seen, WeakKeyDictionary()
        for number, session in enumerate([*sessions], 1):
            count = session.message_count
            seen = before.get(session)
            self._seen[session] = seen if seen is not None and seen[0] == count else (count, now)
            if number % _LOOKS_A_TURN == 0:
                await anyio.lowlevel.checkpoint()

    def last_message_at(self, session: Session) -> float:
        """Return when it had its last message, or arrived, where it has not been looked at."""
        seen = self._seen.get(session)
        return session.arrived_at if seen is None else seen[1]
