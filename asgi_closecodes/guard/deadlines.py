"""Deadlines of sessions: the longest age, the time to authenticate, the expiry of credentials.

All are in one heap, and each tick checks its first entries. A session without deadlines takes no memory here. One with
deadlines has one current entry, for the earliest. When that deadline moves, its old entry stays in the heap as stale.
Stale entries, also of sessions that are over, are dropped when they come first, or when they are the majority.
"""

from __future__ import annotations

import heapq
import math
import random
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Protocol

import anyio.lowlevel

from asgi_closecodes.codes import CloseCode
from asgi_closecodes.concurrency import COUNTING
from asgi_closecodes.exceptions import EndedFromOutside, ServiceRestart, TimedOut, TryAgainLater
from asgi_closecodes.gates.shadow import report_in_shadow
from asgi_closecodes.naming import shown
from asgi_closecodes.session import Session

from .shedding import ENDS_A_TURN

MAX_AGE_HINT_S = 5.0
"""Longest retry hint in the close of a session that has reached its age."""

_ENTRIES_A_TURN = 250
"""Entries that are taken off the heap in one turn of the event loop."""

_MAX_STALE = 100
"""Stale entries that are always tolerated."""

_SWEEPS_A_PUSH = 8
"""Entries that are swept at each push: enough to sweep all before as many new ones are stale."""

_SWEEPS_A_TICK = 250
"""Entries that are swept at each tick."""

_NEVER = math.inf
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIN_POSIX_S = (datetime.min.replace(tzinfo=UTC) - _EPOCH).total_seconds()
_MAX_POSIX_S = (datetime.max.replace(tzinfo=UTC) - _EPOCH).total_seconds() - 1


class Limits(Protocol):
    """The settings that are needed here."""

    @property
    def max_session_age(self) -> float | None:
        """Seconds after which a session is closed."""

    @property
    def auth_timeout(self) -> float | None:
        """Seconds within which a session needs a key."""

    @property
    def shadow(self) -> Collection[str]:
        """Names of these settings that are in the shadow."""


class _SessionDeadlines:
    """Deadlines of one session, in monotonic seconds."""

    __slots__ = (
        "age_at",
        "auth_at",
        "auth_from",
        "entry",
        "entry_at",
        "expires_at",
        "expires_on",
        "reported",
        "session",
    )

    def __init__(self) -> None:
        self.session: Session | None = None  # while it is admitted and not over
        self.age_at = self.auth_at = self.expires_at = _NEVER
        self.auth_from: float | None = None
        self.expires_on: float | None = None  # POSIX seconds
        self.entry = 0  # number of its current entry in the heap, 0 for none; it is due at:
        self.entry_at = _NEVER
        self.reported: tuple[str, ...] = ()  # limits in the shadow that were reported

    @property
    def next_at(self) -> float:
        """Earliest of the deadlines."""
        return min(self.age_at, self.auth_at, self.expires_at)

    def clear(self) -> None:
        """Remove all deadlines."""
        self.age_at = self.auth_at = self.expires_at = _NEVER


_Entry = tuple[float, int, _SessionDeadlines]

_Due = tuple[Session, TryAgainLater | EndedFromOutside, str | None]
"""A session, its close, and the name of the limit if that is in the shadow and closes nobody."""


class Deadlines:
    """The heap of one guard.

    :param sessions: the admitted ones that are not over.
    :param wake: called when a deadline was set, so that the ticker runs.
    :param clock: monotonic seconds.
    :param draw: returns a random number from 0 to 1.
    """

    def __init__(
        self,
        sessions: Iterable[Session],
        wake: Callable[[], object],
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._sessions = sessions
        self._wake = wake
        self._clock = clock
        self._draw = draw
        self._age = self._auth = _NEVER
        self._shadow: frozenset[str] = frozenset()
        self.is_used = False
        """Whether any deadline was ever set. Until then the guard adds no sessions."""
        self.forget()

    def forget(self) -> None:
        """Reset: at the start, and in a child process, whose sessions are the parent's."""
        # Weak: a session may set its expiry in a gate, and be refused by the next gate.
        self._times: weakref.WeakKeyDictionary[Session, _SessionDeadlines] = weakref.WeakKeyDictionary()
        self._heap: list[_Entry] = []
        self._unswept: list[_Entry] = []  # the former heap, while its stale entries are swept; a heap too
        self._current = 0  # entries that are not stale
        self._number = 0

    @property
    def is_needed(self) -> bool:
        """Whether any session has a deadline, or may get one by a setting."""
        return self._current > 0 or not self._age == self._auth == _NEVER

    @property
    def next_at(self) -> float | None:
        """Monotonic seconds of the first entry, which may be stale; None if there is none."""
        with COUNTING:
            return heap[0][0] if (heap := self._first_heap()) else None

    # From sessions

    def add(self, session: Session) -> None:
        """Add an admitted session; called in its event loop."""
        has_limits = not self._age == self._auth == _NEVER
        with COUNTING:
            if (times := self._times.get(session)) is None:
                if not has_limits:
                    return
                times = self._times[session] = _SessionDeadlines()
            times.session = session
            self._set_age(times, session)
            self._schedule(times)
        if self._auth < _NEVER:
            self.begin_auth(session)

    def discard(self, session: Session) -> None:
        """Forget a session that is over."""
        with COUNTING:
            if (times := self._times.pop(session, None)) is not None:
                times.session = None
                self._drop_entry(times)

    def begin_auth(self, session: Session) -> None:
        """Start the time to authenticate once ``session`` is open; called in its event loop."""
        if self._auth == _NEVER:
            return
        if not session.is_answered:
            session.on_handshake_answered(self.begin_auth)
            return
        with COUNTING:
            times = self._times.get(session)
            if times is not None and session.key is None and not session.is_leaving:
                times.auth_from = self._clock()
                times.auth_at = times.auth_from + self._auth
                self._schedule(times)

    def expiry_of(self, session: Session) -> datetime | None:
        """Return when the credentials of ``session`` expire; None if no expiry was set."""
        times = self._times.get(session)
        if times is None or times.expires_on is None:
            return None
        return _EPOCH + timedelta(seconds=max(times.expires_on, _MIN_POSIX_S))

    def set_expiry(self, session: Session, moment: datetime | timedelta | float | None) -> None:
        """Have ``session`` end at ``moment``; see :attr:`Session.expires_at`.

        :raises ValueError: if that is no moment.
        :raises TypeError: if it is of another type.
        """
        now = time.time()  # once: a pause between two looks would end the session early by as much
        posix = None if moment is None else _posix_seconds(moment, now)
        with COUNTING:
            if (times := self._times.get(session)) is None:
                if posix is None:
                    return
                times = self._times[session] = _SessionDeadlines()
                times.session = session if session in self._sessions else None
                self.is_used = True
            times.expires_on = posix
            times.expires_at = _NEVER if posix is None else self._clock() + (posix - now)
            self._schedule(times)
        self._wake()

    # From the guard

    def apply(self, limits: Limits) -> None:
        """Apply ``limits``, to the sessions that are open too; from any thread."""
        before = self._age, self._auth, self._shadow
        age = _NEVER if limits.max_session_age is None else limits.max_session_age
        auth = _NEVER if limits.auth_timeout is None else limits.auth_timeout
        shadow = frozenset(limits.shadow) & {"max_session_age", "auth_timeout"}
        if (age, auth, shadow) == before:
            return
        with COUNTING:
            self._age, self._auth, self._shadow = age, auth, shadow
            has_limits = not age == auth == _NEVER
            self.is_used = self.is_used or has_limits
            for session in [*self._sessions]:
                if (times := self._times.get(session)) is None:
                    if not has_limits:
                        continue
                    times = self._times[session] = _SessionDeadlines()
                    times.session = session
                if (age, shadow) != (before[0], before[2]):
                    self._set_age(times, session, is_open=True)
                self._set_auth(times, session, is_new=before[1] == _NEVER)
                if (entry := self._entry(times)) is not None:
                    self._heap.append(entry)
            heapq.heapify(self._heap)

    def _set_age(self, times: _SessionDeadlines, session: Session, *, is_open: bool = False) -> None:
        if self._age == _NEVER:
            times.age_at = _NEVER
            return
        now = self._clock()
        times.age_at = session.arrived_at + self._age * (1 + self._draw()) / 2
        if is_open and times.age_at <= now:  # a lowered limit expires many at once: spread their closes
            times.age_at = now + self._age * self._draw() / 2

    def _set_auth(self, times: _SessionDeadlines, session: Session, *, is_new: bool) -> None:
        if self._auth == _NEVER:
            times.auth_at, times.auth_from = _NEVER, None
        elif is_new:
            session.loop.call_soon(self.begin_auth, session)
        elif times.auth_from is not None and session.key is None:
            times.auth_at = times.auth_from + self._auth

    def check(self) -> Callable[[], Awaitable[None]] | None:
        """Return a function that ends the sessions whose time is over; None if there are none."""
        with COUNTING:
            self._sweep(_SWEEPS_A_TICK)
        next_at = self.next_at
        return None if next_at is None or next_at > self._clock() else self._end_due

    async def _end_due(self) -> None:
        while True:
            due, goes_on = self._take_due()
            for session, refusal, limit in due:
                if limit is None:
                    session.schedule_close(refusal)
                else:
                    report_in_shadow(session, limit, refusal)
            if not goes_on:
                return
            await anyio.lowlevel.checkpoint()

    def _take_due(self) -> tuple[list[_Due], bool]:
        """Return some of the sessions whose time is over, and whether there may be more."""
        now = self._clock()
        due: list[_Due] = []
        with COUNTING:
            for _ in range(_ENTRIES_A_TURN):
                if not (heap := self._first_heap()) or heap[0][0] > now:
                    return due, False
                if len(due) >= ENDS_A_TURN:
                    return due, True
                _, number, times = heapq.heappop(heap)
                if number != times.entry:
                    continue
                self._drop_entry(times)
                session = times.session
                if session is None or session.is_leaving:
                    continue
                due += self._reached(times, session, now)
                self._schedule(times)
        return due, True

    def _reached(self, times: _SessionDeadlines, session: Session, now: float) -> Iterable[_Due]:
        """Yield the close that ends ``session`` now, if any, and those of limits in the shadow."""
        if times.expires_at <= now:
            times.clear()
            yield session, TimedOut(CloseCode.UNAUTHORIZED, "credentials expired", "expired"), None
            return
        reached = []
        if times.auth_at <= now:
            times.auth_at = _NEVER
            if session.key is None:
                reached.append(("auth_timeout", _auth_timeout()))
        if times.age_at <= now:
            times.age_at = _NEVER
            reached.append(("max_session_age", self._too_old()))
        for limit, refusal in reached:
            if limit not in self._shadow:
                times.clear()
                yield session, refusal, None
                return
            if limit not in times.reported:
                times.reported += (limit,)
                yield session, refusal, limit

    def _too_old(self) -> TryAgainLater | EndedFromOutside:
        return ServiceRestart("session age reached", cause="age", retry_after=MAX_AGE_HINT_S * self._draw())

    # The heap

    def _schedule(self, times: _SessionDeadlines) -> None:
        """Push an entry for the first of its deadlines."""
        if (entry := self._entry(times)) is not None:
            heapq.heappush(self._heap, entry)
            self._sweep(_SWEEPS_A_PUSH)

    def _entry(self, times: _SessionDeadlines) -> _Entry | None:
        """Return a new entry for the heap; None if its current one is early enough."""
        if times.session is None or (at := times.next_at) >= times.entry_at:
            return None
        self._drop_entry(times)
        self._number += 1
        self._current += 1
        times.entry, times.entry_at = self._number, at
        return at, self._number, times

    def _drop_entry(self, times: _SessionDeadlines) -> None:
        if times.entry:
            times.entry, times.entry_at = 0, _NEVER
            self._current -= 1

    def _first_heap(self) -> list[_Entry]:
        """Return that of the two heaps whose first entry is earlier."""
        if self._unswept and not (self._heap and self._heap[0] < self._unswept[0]):
            return self._unswept
        return self._heap

    def _sweep(self, count: int) -> None:
        """Drop up to ``count`` stale entries if too many are stale; all at once would block the event loop."""
        if not self._unswept:
            if len(self._heap) <= 2 * self._current + _MAX_STALE:
                return
            self._heap, self._unswept = [], self._heap
        for _ in range(min(count, len(self._unswept))):
            entry = self._unswept.pop()  # popping the last one keeps the heap valid
            if entry[1] == entry[2].entry:
                heapq.heappush(self._heap, entry)


def _auth_timeout() -> TryAgainLater | EndedFromOutside:
    return TimedOut(CloseCode.UNAUTHORIZED, "authentication timeout", "auth")


def _posix_seconds(moment: object, now: float) -> float:
    """Return the POSIX seconds of ``moment``, at ``now``.

    :raises ValueError: if that is no moment.
    :raises TypeError: if it is of another type.
    """
    remedy = "use an aware datetime, as datetime.now(UTC) + timedelta(hours=1), a timedelta, POSIX seconds or None"
    if isinstance(moment, bool):
        raise ValueError(f"session.expires_at must be a moment, not {moment}; {remedy}")  # noqa: TRY004 - documented
    if isinstance(moment, timedelta):
        posix = now + moment.total_seconds()
    elif isinstance(moment, datetime):
        if moment.utcoffset() is None:
            raise ValueError(f"session.expires_at must have a time zone, and this datetime has none; {remedy}")
        posix = moment.timestamp()
    elif isinstance(moment, (int, float)):
        posix = float(min(max(moment, -(10**300)), 10**300))
    else:
        raise TypeError(f"session.expires_at must be a moment, not {shown(moment)}; {remedy}")
    if not posix <= _MAX_POSIX_S:  # nor NaN
        raise ValueError(
            f"session.expires_at must be a moment before the year 10000, not {shown(moment)}; {remedy} "
            "(milliseconds are to be divided by 1000)"
        )
    return posix
