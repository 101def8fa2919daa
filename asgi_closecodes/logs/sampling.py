"""Log sampling: writes some of many equal records, counts the others, and writes the counts later.

The decision comes before any formatting. Records and counts add up to the number of events.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from asgi_closecodes.concurrency import COUNTING

MAX_KINDS = 1024
"""Kinds counted separately. Further ones share a kind for each first part of their keys."""

FORGET_AFTER_S = 60.0
"""Unused time after which a kind without pending counts makes room for a new one."""

SUMMARY_AFTER_S = 30.0
"""Time after which pending counts are written as summaries."""

Key: TypeAlias = tuple[Hashable, Hashable]
"""Key of a kind. Kinds beyond ``MAX_KINDS`` keep only its first part."""

About = TypeVar("About")


class Allowance(Protocol):
    """Limit of records; see :class:`asgi_closecodes.token_bucket.TokenBucket`."""

    def take(self) -> bool:
        """Return True and count it if one more is allowed now."""


@dataclass(slots=True)
class _Kind(Generic[About]):
    about: About
    allowance: Allowance
    is_rest: bool
    suppressed: int = 0
    used_at: float = -math.inf


class LogSampler(Generic[About]):
    """Decide by kind which records are written.

    :param allowance: creates the allowance of one kind.
    :param overall: the allowance of all kinds together. The first record of a kind is always written.
    :param most: kinds counted separately, ``MAX_KINDS`` by default.
    :param wake: called when there is something for :meth:`flush`, after there was nothing.
    :param clock: monotonic seconds.
    """

    __slots__ = ("_allowance", "_clock", "_flushed_at", "_kinds", "_most", "_overall", "_wake", "pending")

    def __init__(
        self,
        allowance: Callable[[], Allowance],
        overall: Allowance | None = None,
        *,
        most: int | None = None,
        wake: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wake = wake
        self._clock = clock
        self._most = most
        self._kinds: dict[Hashable, _Kind[About]] = {}  # the last used is the last
        self.pending: dict[Hashable, _Kind[About]] = {}
        """Kinds that have counts to write."""
        self._flushed_at = -math.inf
        self.limit(allowance, overall)

    def limit(self, allowance: Callable[[], Allowance], overall: Allowance | None = None) -> None:
        """Change the allowances. Pending counts are kept."""
        with COUNTING:
            self._allowance = allowance
            self._overall = overall
            for kind in self._kinds.values():
                kind.allowance = allowance()

    def forget(self) -> None:
        """Drop all kinds and counts, in a child process."""
        self._kinds.clear()
        self.pending = {}

    def check(self, key: Key, about: Callable[..., About], *arguments: object) -> int | None:
        """Return how many of this kind were suppressed since the last written one, or None to suppress this one.

        :param about: given ``arguments``, describes the first of a kind, for its summary.
        """
        with COUNTING:
            now = self._clock()
            entry: Hashable = key
            kind = self._kinds.pop(entry, None)
            if kind is None and not self._has_room(now):
                entry = key[0]
                kind = self._kinds.pop(entry, None)
            if is_first := kind is None:
                kind = _Kind(about(*arguments), self._allowance(), is_rest=entry is not key)
            self._kinds[entry] = kind
            kind.used_at = now
            # The first of a kind is always written, but uses the allowances too.
            may = kind.allowance.take()
            may = may and (self._overall is None or self._overall.take())
            if may or is_first:
                self.pending.pop(entry, None)
                suppressed, kind.suppressed = kind.suppressed, 0
                return suppressed
            if begins := not self.pending:
                self._flushed_at = now
            kind.suppressed += 1
            self.pending[entry] = kind
        if begins:
            self._wake()
        return None

    def _has_room(self, now: float) -> bool:
        while len(self._kinds) >= (self._most or MAX_KINDS):
            oldest, kind = next(iter(self._kinds.items()))
            if kind.suppressed or now - kind.used_at < FORGET_AFTER_S:
                return False
            del self._kinds[oldest]
        return True

    def flush(self, *, now: bool = False) -> Iterator[tuple[About, bool, int]]:
        """Yield the description of each suppressed kind, whether it stands for many kinds, and its count.

        :param now: do not wait for ``SUMMARY_AFTER_S``.
        """
        if not self.pending or (not now and self._clock() - self._flushed_at < SUMMARY_AFTER_S):
            return
        self._flushed_at = self._clock()
        with COUNTING:
            pending, self.pending = self.pending, {}
            summaries = [(kind.about, kind.is_rest, kind.suppressed) for kind in pending.values()]
            for kind in pending.values():
                kind.suppressed = 0
        yield from summaries
