"""Which of many equal records are written; the others are counted, and the count is written later.

It is decided before anything is formatted, and nothing is lost: lines and counts add up to what happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from asgi_closecodes.concurrency import COUNTING

MAX_KINDS = 1024
"""Kinds that are told apart. Those beyond are one kind together, for each first part of their keys."""

FORGET_AFTER_S = 60.0
"""Seconds after which a kind makes room for a new one, if it has nothing left to say."""

SUMMARY_AFTER_S = 30.0
"""Seconds after which counts are written that no further record has carried."""

Key: TypeAlias = tuple[Hashable, Hashable]
"""What is equal for records of one kind; the first part is what a kind beyond ``MAX_KINDS`` is still known by."""

About = TypeVar("About")


class Allowance(Protocol):
    """How often something may happen; see :class:`asgi_closecodes.token_bucket.Rate`."""

    def take(self) -> bool:
        """Whether one more may happen now; if so, it counts."""


@dataclass(slots=True)
class _Kind(Generic[About]):
    about: About
    allowance: Allowance
    is_rest: bool
    suppressed: int = 0
    used_at: float = -math.inf


class LogSampler(Generic[About]):
    """Decides which records are written, by kind.

    :param allowance: makes the allowance of one kind.
    :param overall: the allowance of all kinds together, but for the first of each.
    :param most: kinds that are told apart, by default ``MAX_KINDS``.
    :param clock: monotonic seconds.
    """

    __slots__ = ("_allowance", "_clock", "_flushed_at", "_kinds", "_most", "_overall", "_pending")

    def __init__(
        self,
        allowance: Callable[[], Allowance],
        overall: Allowance | None = None,
        *,
        most: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._most = most
        self._kinds: dict[Hashable, _Kind[About]] = {}  # the one that was used last is the last
        self._pending: dict[Hashable, _Kind[About]] = {}
        self._flushed_at = -math.inf
        self.limit(allowance, overall)

    def limit(self, allowance: Callable[[], Allowance], overall: Allowance | None = None) -> None:
        """Change what is allowed; what was counted stays counted."""
        with COUNTING:
            self._allowance = allowance
            self._overall = overall
            for kind in self._kinds.values():
                kind.allowance = allowance()

    def forget(self) -> None:
        """Begin anew, in a child process."""
        self._kinds.clear()
        self._pending = {}

    def check(self, key: Key, about: Callable[[], About]) -> int | None:
        """Return how many of this kind were left out since the last that was written, or None to leave this out too.

        :param about: called for the first of a kind, returns what its summary needs to know.
        """
        with COUNTING:
            now = self._clock()
            place: Hashable = key
            kind = self._kinds.pop(place, None)
            if kind is None and not self._has_room(now):
                place = key[0]
                kind = self._kinds.pop(place, None)
            if is_first := kind is None:
                kind = _Kind(about(), self._allowance(), is_rest=place is not key)
            self._kinds[place] = kind
            kind.used_at = now
            # The first of a kind, which is always written, counts too.
            may = kind.allowance.take()
            may = may and (self._overall is None or self._overall.take())
            if not (may or is_first):
                if not self._pending:
                    self._flushed_at = now
                kind.suppressed += 1
                self._pending[place] = kind
                return None
            self._pending.pop(place, None)
            suppressed, kind.suppressed = kind.suppressed, 0
            return suppressed

    def _has_room(self, now: float) -> bool:
        while len(self._kinds) >= (self._most or MAX_KINDS):
            oldest, kind = next(iter(self._kinds.items()))
            if kind.suppressed or now - kind.used_at < FORGET_AFTER_S:
                return False
            del self._kinds[oldest]
        return True

    @property
    def has_pending_summaries(self) -> bool:
        """Whether there are counts that were not written yet."""
        return bool(self._pending)

    def flush(self, *, now: bool = False) -> Iterator[tuple[About, bool, int]]:
        """Yield for each kind that was left out what it is about, whether it is one of many others, and its count.

        :param now: without waiting for ``SUMMARY_AFTER_S``.
        """
        if not self._pending or (not now and self._clock() - self._flushed_at < SUMMARY_AFTER_S):
            return
        self._flushed_at = self._clock()
        with COUNTING:
            pending, self._pending = self._pending, {}
            summaries = [(kind.about, kind.is_rest, kind.suppressed) for kind in pending.values()]
            for kind in pending.values():
                kind.suppressed = 0
        yield from summaries
