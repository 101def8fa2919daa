"""How often something may happen: the generic cell rate algorithm (ITU-T I.371), two numbers of state."""

from __future__ import annotations

import time
from collections.abc import Callable


class Rate:
    """At most ``per_second`` events a second over time, and ``burst`` at once.

    :param per_second: events a second; 0 lets none through.
    :param burst: events that may come together after a pause; at least 1.
    :param clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_due", "burst", "per_second")

    def __init__(self, per_second: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self.burst = burst
        self._clock = clock
        self._due = 0.0

    def take(self) -> bool:
        """Whether one more event may happen now; if so, it counts."""
        if self.per_second <= 0:
            return False
        now = self._clock()
        interval = 1 / self.per_second
        due = max(self._due, now) + interval
        if due - now > interval * max(self.burst, 1):
            return False
        self._due = due
        return True
