"""Gates on handshakes: how many are in progress, and how many arrive a second."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

from asgi_closecodes.bounds import is_between
from asgi_closecodes.concurrency import COUNTING
from asgi_closecodes.naming import shown
from asgi_closecodes.session import Session
from asgi_closecodes.token_bucket import TokenBucket

from .base import NO_PERMIT, GateBase
from .sessions import Limited, Permit


class HandshakesInProgress(Limited):
    """At most ``limit`` sessions between their handshake and its answer, in this process.

    In a storm of reconnecting clients the load is their set-up (authentication, a database), not their sessions. The
    permit is released as soon as the handler accepts or denies.

    :param limit: handshakes; None is no limit, 0 admits nobody.
    :param handshake_timeout: seconds after which an unanswered handshake is closed with 1013, if there is a limit.
    :param name: see :class:`GateBase`.
    :raises ValueError: if ``limit`` or ``handshake_timeout`` cannot be used, here or when it is changed.
    """

    __slots__ = ("_clock", "_handshake_timeout", "_started")
    _own_name = "handshakes_in_progress"
    cause = "setup"

    def __init__(
        self,
        limit: int | None,
        handshake_timeout: float = 10.0,
        *,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(limit, name)
        self.handshake_timeout = handshake_timeout
        self._clock = clock
        self._started: dict[Session, float] = {}

    @property
    def handshake_timeout(self) -> float:
        """Seconds that a handshake may take."""
        return self._handshake_timeout

    @handshake_timeout.setter
    def handshake_timeout(self, handshake_timeout: float) -> None:
        if not (is_between(handshake_timeout, 0) and handshake_timeout > 0):
            raise ValueError(f"handshake_timeout={shown(handshake_timeout)}: use a number of seconds above 0")
        self._handshake_timeout = handshake_timeout

    @property
    def usage(self) -> int:
        """Handshakes in progress."""
        return len(self._started)

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds one of the permits until the handshake is answered."""
        return Permit(self, session)

    def adopt(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Count a handshake that is already in progress, from its arrival on."""
        self._started[session] = session.arrived_at
        session.on_handshake_answered(self.release)
        if session.is_answered:  # last: this may be another thread than the session's
            self.release(session)
            return NO_PERMIT
        return Permit(self, session)

    def acquire(self, session: Session) -> None:
        """Count one handshake more, or refuse it."""
        with COUNTING:
            if self._limit is not None and len(self._started) >= self._limit:
                raise self._refusal(self.usage)
            self._started[session] = self._clock()
        session.on_handshake_answered(self.release)

    def release(self, session: Session) -> None:
        """Count one handshake less, once."""
        self._started.pop(session, None)

    def expired(self) -> Iterator[Session]:
        """Yield the sessions whose handshake takes too long."""
        if self._limit is None:
            return
        latest = self._clock() - self._handshake_timeout
        for session, started in self._started.copy().items():  # copied: another thread may change it
            if started > latest:
                break  # all others are younger
            yield session

    def forked(self) -> None:
        """Reset in a child process."""
        self._started = {}


class HandshakeRate(GateBase):
    """At most ``rate`` new sessions a second in this process, and ``burst`` at once.

    A refused client is told when its turn comes, and no two get the same turn. For ``ramp`` seconds after the start the
    rate grows from a third, since caches are cold.

    :param rate: sessions a second.
    :param burst: sessions at once after a pause, by default as many as come in a second.
    :param ramp: seconds.
    :param cap: the longest delay that a client is told, in seconds; later turns are spread over its upper half.
    :param name: see :class:`GateBase`.
    :raises ValueError: if one of them cannot be used, here or when ``rate`` or ``burst`` is changed.
    """

    __slots__ = ("_burst", "_clock", "_limiter", "_rate", "_start", "_turn", "cap", "ramp")
    _own_name = "handshake_rate"
    cause = "rate"

    def __init__(
        self,
        rate: float,
        burst: float | None = None,
        *,
        ramp: float = 30.0,
        cap: float = 60.0,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name)
        for parameter, seconds in (("ramp", ramp), ("cap", cap)):
            if not is_between(seconds, 0):
                raise ValueError(f"{parameter}={shown(seconds)}: use a number of seconds, 0 or more")
        self._clock = clock
        self._limiter = TokenBucket(0, 0, clock=clock)
        self._start = clock()
        self._turn = -math.inf
        self.rate = rate
        self.burst = burst
        self.ramp = ramp
        self.cap = cap

    @property
    def rate(self) -> float:
        """Sessions a second; 0 admits nobody."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        if not is_between(rate, 0):
            raise ValueError(f"rate={shown(rate)}: use a number of sessions a second, 0 or more")
        self._rate = rate

    @property
    def limit(self) -> float:
        """The same as :attr:`rate`."""
        return self._rate

    @property
    def burst(self) -> float | None:
        """Sessions at once; None is as many as come in a second."""
        return self._burst

    @burst.setter
    def burst(self, burst: float | None) -> None:
        if burst is not None and not is_between(burst, 1):
            raise ValueError(f"burst={shown(burst)}: use a number of sessions, 1 or more, or None")
        self._burst = burst

    def admit(self, _session: Session, /) -> AbstractAsyncContextManager[None]:
        """Count one handshake of this second; there is nothing to release.

        :raises TryAgainLater: with the exact delay.
        """
        with COUNTING:
            now = self._clock()
            limiter = self._limiter
            limiter.per_second = rate = self._rate_at(now)
            limiter.burst = rate if self._burst is None else self._burst
            if limiter.take():
                return NO_PERMIT
            raise self._refusal(retry_after=self._next_turn(now))

    def _rate_at(self, now: float) -> float:
        age = now - self._start
        return self._rate if age >= self.ramp else self._rate * (1 + 2 * age / self.ramp) / 3

    def _next_turn(self, now: float) -> float:
        if self._rate == 0:
            return self.cap
        turn = max(self._turn + 1 / self._rate_at(max(self._turn, now)), now + self._limiter.wait())
        if turn > now + self.cap:  # no turn: its client would come back long before it
            return random.uniform(self.cap / 2, self.cap)  # noqa: S311
        self._turn = turn
        return turn - now
