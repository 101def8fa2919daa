"""Retry hints: turns in a queue, so that refused clients come back one after another."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

from asgi_closecodes.concurrency import COUNTING


class RetryQueue:
    """A virtual queue of refused clients; each refusal takes the next turn.

    It drains as fast as sessions end, but no faster than handshakes are admitted. So clients come back about as fast as
    they can be served. The state is a few numbers, whatever the number of clients.

    :param cap: the longest hint, in seconds; beyond it hints are spread over the upper half.
    :param clock: monotonic seconds.
    :param uniform: random numbers between two bounds.
    """

    __slots__ = (
        "_clock",
        "_freed",
        "_freed_at",
        "_slot",
        "_start",
        "_turns",
        "_uniform",
        "admits_per_second",
        "cap",
    )  # fmt: skip

    SLOWEST = 1.0
    """Lowest rate of ending sessions that is assumed, a second. With a lower one clients back off by themselves."""
    MEMORY = 10.0
    """Seconds over which the rate of ending sessions is averaged."""

    def __init__(
        self,
        cap: float = 60.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.cap = cap
        self.admits_per_second = math.inf
        self._clock = clock
        self._uniform = uniform
        self._slot = self._start = 0.0
        self._turns = 0.0
        """Turns that were given between ``_start`` and ``_slot``."""
        self._freed = 0.0
        self._freed_at = clock()

    def freed(self) -> None:
        """Count a session that ended; the caller has the lock."""
        now = self._clock()
        self._freed = 1 + self._freed * math.exp((self._freed_at - now) / self.MEMORY)
        self._freed_at = now

    def hint(self) -> float:
        """Take the next turn; return the seconds until then, at least 0.9."""
        with COUNTING:
            now = self._clock()
            rate = self._freed * math.exp((self._freed_at - now) / self.MEMORY) / self.MEMORY
            # No min() and max(): each takes ten times as long, for each refusal.
            rate = rate if rate > self.SLOWEST else self.SLOWEST  # noqa: FURB136
            rate = rate if rate < self.admits_per_second else self.admits_per_second  # noqa: FURB136
            slot = (self._slot if self._slot > now + 1 else now + 1) + 1 / rate  # noqa: FURB136
            if slot > now + self.cap:  # no turn: its client would come back long before it
                return self._uniform(self.cap / 2, self.cap)
            self._turns = self._not_due(now) + 1
            self._start = max(self._start, now) if slot - 1 / rate > now + 1 else now + 1
            self._slot = slot
            return (slot - now) * self._uniform(0.9, 1.1)

    def waiting(self) -> int:
        """Return how many turns have been given that have not come."""
        with COUNTING:
            return math.ceil(self._not_due(self._clock()) - 1e-9)

    def _not_due(self, now: float) -> float:
        """Return how many turns are later than ``now``, taken as evenly spread."""
        if now >= self._slot:
            return 0.0
        return self._turns * min((self._slot - now) / (self._slot - self._start), 1.0)
