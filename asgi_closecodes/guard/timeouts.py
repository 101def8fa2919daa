"""Time limits of open sessions: idle ones, blocked sends, handlers that go on without their peer.

Each tick checks a part of the sessions. A message costs nothing, and no session has a timer.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from types import CoroutineType
from typing import Protocol

import anyio.lowlevel

from asgi_closecodes.codes import CloseCode
from asgi_closecodes.concurrency import EventLoop, spawn
from asgi_closecodes.exceptions import TimedOut, TryAgainLater
from asgi_closecodes.gates.shadow import report_in_shadow
from asgi_closecodes.session import Session, is_pending
from asgi_closecodes.session.message_rate import is_early

from .shedding import ENDS_A_TURN

STALLED_AFTER_S = 5.0
"""Seconds in one ``send`` after which a session is called stalled."""

_MIN_PERIOD_S = 0.45
"""Seconds in which every session is checked once. A limit may be two periods late: less than a second."""

_MAX_PERIOD_S = 5.0
"""The same for long limits. No longer: a session that is over stays in memory until its next check."""

_MIN_CHECKS = 100
"""Sessions that are checked in every tick."""

_CHECKS_A_TURN = 2000
"""Sessions that are checked in one turn of the event loop, at most."""

_MAX_STEP_S = 1.0
"""Seconds between two ticks that count, at most: while the event loop is blocked, sessions are not idle."""


class Limits(Protocol):
    """The settings that are needed here."""

    @property
    def idle_timeout(self) -> float | None:
        """Seconds without a message."""

    @property
    def send_timeout(self) -> float | None:
        """Seconds in one ``send``."""

    @property
    def shadow(self) -> Collection[str]:
        """Names of these settings that are in the shadow."""

    @property
    def cancel_after_disconnect(self) -> bool:
        """Whether to cancel handlers whose peer has left."""

    @property
    def shed_grace(self) -> float:
        """Seconds until then."""


class _Watched:
    """Findings of the last check of a session."""

    __slots__ = (
        "active_at",
        "connection",
        "count",
        "departed_at",
        "measured_at",
        "reported",
        "sending",
        "sending_since",
        "session",
        "taken_at",
        "unsent",
    )

    def __init__(self, session: Session, now: float) -> None:
        self.session = session
        self.count = session.message_count
        self.active_at = now  # when the count last changed, or somewhat later
        self.sending: object = None  # an awaitable that has not ended yet
        self.sending_since = self.taken_at = self.measured_at = now
        self.unsent: int | None = None  # bytes, when they were measured
        self.departed_at: float | None = None
        self.reported: tuple[str, ...] = ()  # limits in the shadow that were reported
        self.connection = session.connection

    @property
    def is_lost(self) -> bool:
        """Whether the connection is known to be gone."""
        return self.connection is not None and self.connection.is_lost

    @property
    def measured(self) -> int | None:
        """Bytes that the peer's system has not taken yet; None if that is unknown."""
        return None if self.connection is None else self.connection.unsent


class SessionTimeouts:
    """Checks the sessions in turn, and ends those that are beyond a limit.

    :param sessions: the admitted ones that are not over.
    :param clock: monotonic seconds.
    """

    def __init__(self, sessions: Iterable[Session], clock: Callable[[], float] = time.monotonic) -> None:
        self._sessions = sessions
        self._clock = clock
        self._idle = self._send = self._grace = math.inf
        self._cancels = False
        self.is_needed = False
        """Whether a limit is set."""
        self._shadow: Collection[str] = ()
        self._period = _MAX_PERIOD_S
        self._ring: deque[_Watched] = deque()
        self._stalls: set[_Watched] = set()
        self._expired: dict[Session, TimedOut | TryAgainLater] = {}
        self._ending_in: EventLoop | None = None  # a loop may be closed while it runs that
        self._checked_at = clock()
        self._passed = 0.0  # seconds, by this object's own clock

    def apply(self, limits: Limits) -> None:
        """Apply ``limits``, to open sessions too."""
        before = self._send, self._cancels, self.is_needed
        self._idle = math.inf if limits.idle_timeout is None else limits.idle_timeout
        self._send = math.inf if limits.send_timeout is None else limits.send_timeout
        self._shadow = limits.shadow
        self._cancels, self._grace = limits.cancel_after_disconnect, limits.shed_grace
        self.is_needed = self._cancels or not self._idle == self._send == math.inf
        stalled = math.inf if self._send == math.inf else STALLED_AFTER_S * 4
        shortest = min(self._idle, self._send, self._grace if self._cancels else math.inf, stalled)
        # Two periods, which a limit may be late, are less than a tenth of it.
        self._period = min(max(shortest * _MIN_PERIOD_S / 10, _MIN_PERIOD_S), _MAX_PERIOD_S)
        if (self._send, self._cancels) != before[:2]:
            for session in [*self._sessions]:
                session.follow_rules_soon()
        if not self.is_needed:
            self._ring.clear()
            self._stalls.clear()
        elif not before[2]:
            now = self._now()
            self._ring.extend(_Watched(session, now) for session in [*self._sessions])

    def forget(self) -> None:
        """Reset in a child process: the sessions are the parent's."""
        self._ring.clear()
        self._stalls.clear()
        self._expired.clear()

    def add(self, session: Session) -> None:
        """Check ``session`` too from now on."""
        if self.is_needed:
            self._ring.append(_Watched(session, self._now()))

    def stalled(self) -> int:
        """Return how many open sessions have been in one ``send`` for over 5 s, as far as that is checked."""
        latest = self._now() - STALLED_AFTER_S
        return sum(
            watched.sending_since < latest and is_pending(watched.sending) and not watched.session.is_leaving
            for watched in [*self._stalls]
        )

    def _now(self) -> float:
        return self._passed + min(self._clock() - self._checked_at, _MAX_STEP_S)

    async def check(self) -> None:
        """Check the sessions whose turn it is; other tasks run meanwhile."""
        now = self._now()  # also for the share: else a loop that stood still would check every session at once
        share = math.ceil(len(self._ring) * min((now - self._passed) / self._period, 1.0))
        self._passed, self._checked_at = now, self._clock()
        checks = min(max(share, _MIN_CHECKS), len(self._ring))
        while checks > 0:
            self._check_next(min(checks, _CHECKS_A_TURN), now)
            if (checks := checks - _CHECKS_A_TURN) > 0:
                await anyio.lowlevel.checkpoint()
        if self._expired and not (self._ending_in is not None and self._ending_in.is_alive):
            self._ending_in = EventLoop.running()
            spawn(self._end_expired)

    async def _end_expired(self) -> None:
        try:
            while self._expired:
                for _ in range(min(ENDS_A_TURN, len(self._expired))):
                    session, refusal = self._expired.popitem()
                    session.schedule_close(refusal)
                await anyio.lowlevel.checkpoint()
        finally:
            self._ending_in = None

    def _check_next(self, count: int, now: float) -> None:
        """Check the next sessions of the ring; every name in this loop costs time at 50 000 sessions."""
        ring, idle, cancels = self._ring, self._idle, self._cancels
        for _ in range(min(count, len(ring))):
            try:
                watched = ring.popleft()
            except IndexError:
                return  # another thread has removed the limits
            session = watched.session
            if session.permits is None:  # it is over; an attribute, since a property would double the time of this loop
                self._stalls.discard(watched)
                continue
            ring.append(watched)
            messages = session.received + session.sent
            if messages != watched.count:
                watched.count, watched.active_at = messages, now
            elif now - watched.active_at >= idle:
                self._end_idle(watched, now)
            sending = session.sending
            if not (
                sending is None
                or (type(sending) is CoroutineType and not sending.cr_suspended and watched.sending is None)
            ):
                self._check_send(watched, now)
            if cancels and (session.has_departed or (watched.is_lost and not session.is_leaving)):
                self._check_departed(watched, now)

    def _expire(self, watched: _Watched, limit: str, refusal: TimedOut | TryAgainLater) -> None:
        if limit not in self._shadow:
            self._expired[watched.session] = refusal
        elif limit not in watched.reported:
            watched.reported += (limit,)
            report_in_shadow(watched.session, limit, refusal)

    def _end_idle(self, watched: _Watched, now: float) -> None:
        if is_early(watched.session):
            watched.active_at = now  # a message may wait that messages_per_second delays
            return
        # A message in flight to a slow peer is left to send_timeout.
        if watched.sending is None and not watched.session.is_leaving:
            self._expire(watched, "idle_timeout", TimedOut(CloseCode.TIMEOUT, "idle timeout", "idle"))

    def _check_send(self, watched: _Watched, now: float) -> None:
        # A handler may send in several tasks at once: the first pending send found counts until it has ended.
        if watched.sending is None or not is_pending(watched.sending):
            watched.sending = watched.session.sending if is_pending(watched.session.sending) else None
            watched.sending_since = watched.taken_at = watched.measured_at = now
            watched.unsent = None
            (self._stalls.discard if watched.sending is None else self._stalls.add)(watched)
            return
        if now - watched.measured_at >= self._send / 8:
            before, watched.unsent, watched.measured_at = watched.unsent, watched.measured, now
            if before is not None and watched.unsent is not None and watched.unsent < before:
                watched.taken_at = now
        if now - watched.taken_at >= self._send and not watched.session.is_leaving:
            self._expire(watched, "send_timeout", TryAgainLater(cause="slow", is_overload=False))

    def _check_departed(self, watched: _Watched, now: float) -> None:
        if watched.departed_at is None:
            watched.departed_at = now
        if now - watched.departed_at >= self._grace:
            watched.departed_at = math.inf  # once
            watched.session.cancel_soon()
