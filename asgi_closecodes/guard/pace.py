"""The pace at which sessions leave."""

from __future__ import annotations

import time
from collections.abc import Callable

from asgi_closecodes.bounds import MAX_NUMBER


class Pace:
    """So many a second, evenly.

    :param clock: monotonic seconds.
    """

    __slots__ = ("_at", "_clock", "_saved")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._saved = 0.0

    def due(self, per_second: float) -> int:
        """Return how many are due since the last call; what is not used is lost, up to the fraction."""
        now = self._clock()
        per_second = min(per_second, MAX_NUMBER)  # a window may be too short for its number to be one
        self._saved = min(self._saved + (now - self._at) * per_second, max(per_second, 1.0))
        self._at = now
        due = int(self._saved)
        self._saved -= due
        return due
