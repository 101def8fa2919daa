"""Rate limits: a token bucket, a fixed window, and no limit. Each has two numbers of state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from .bounds import MAX_NUMBER
from .concurrency import COUNTING

_MOST = float(MAX_NUMBER)


class TokenBucket:
    """At most ``per_second`` events a second over time, and ``burst`` at once; both may change at any time.

    :param per_second: events a second; 0 lets none through.
    :param burst: events that may come together after a pause; at least 1.
    :param is_full: whether a burst is allowed at the start; else events are even from the start on.
    :param clock: monotonic seconds.
    """

    __slots__ = ("_at", "_clock", "_tokens", "burst", "per_second")

    def __init__(
        self,
        per_second: float,
        burst: float,
        *,
        is_full: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_second = per_second
        self.burst = burst
        self._clock = clock
        self._at = clock()
        self._tokens = math.inf if is_full else 0.0  # full, however large the burst becomes

    def take(self) -> bool:
        """Count one more event if it may happen now; return whether it may."""
        if self.per_second <= 0:
            return False
        with COUNTING:
            self._refill()
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def take_all(self) -> int:
        """Return how many more events may happen now; all of them count."""
        if self.per_second <= 0:
            return 0
        with COUNTING:
            self._refill()
            count = int(self._tokens)
            self._tokens -= count
            return count

    def _refill(self) -> None:
        now = self._clock()
        # A rate may be infinite, as of a tiny window. No min(): it takes ten times as long, for each refusal.
        per_second = self.per_second if self.per_second < _MOST else _MOST  # noqa: FURB136
        tokens = self._tokens + (now - self._at) * per_second
        most = max(self.burst, 1.0) if self.burst < _MOST else _MOST
        self._tokens = tokens if tokens < most else most  # noqa: FURB136
        self._at = now

    def wait(self) -> float:
        """Return the seconds until the next event may happen, if nothing happens until then."""
        if self.per_second <= 0:
            return math.inf
        tokens = self._tokens + (self._clock() - self._at) * self.per_second
        return max(1 - tokens, 0) / self.per_second


class FixedWindow:
    """At most ``limit`` events in each stretch of ``seconds``, which starts with the first event after the last one.

    :param clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_count", "_until", "limit", "seconds")

    def __init__(self, limit: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.seconds = seconds
        self._clock = clock
        self._until = -math.inf
        self._count = 0

    def take(self) -> bool:
        """Count one more event if it may happen now; return whether it may."""
        now = self._clock()
        if now >= self._until:
            self._until = now + self.seconds
            self._count = 0
        if self._count >= self.limit:
            return False
        self._count += 1
        return True


class Unlimited:
    """No limit: every event may happen."""

    __slots__ = ()

    def take(self) -> bool:
        """Return True."""
        return True
