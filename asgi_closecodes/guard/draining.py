"""The drain of a process that is about to stop: nobody comes in, and everybody leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection

import anyio
import anyio.lowlevel

from asgi_closecodes import events
from asgi_closecodes.bounds import is_between
from asgi_closecodes.concurrency import Claim
from asgi_closecodes.exceptions import ServiceRestart
from asgi_closecodes.naming import shown
from asgi_closecodes.session import Session
from asgi_closecodes.token_bucket import TokenBucket

from .shed_order import ShedOrder
from .shedding import ENDS_A_TURN
from .ticker import TICK_S

NAME = "draining"
"""Stands for a gate where refusals during a drain are reported."""


class Draining:
    """The drain of one guard, and whether it is on.

    :param sessions: the admitted ones that are not over.
    :param staying: returns those of them that are not about to end.
    :param shed_order: chooses who goes first.
    :param report: gets events.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        sessions: Collection[Session],
        staying: Callable[[], list[Session]],
        shed_order: ShedOrder,
        report: events.Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_on = False
        self._sessions = sessions
        self._staying = staying
        self._shed_order = shed_order
        self._report = report
        self._clock = clock
        self._claim = Claim()

    def check(self) -> None:
        """Refuse a session with 1012 while the drain is on.

        :raises TryAgainLater: then.
        """
        if self.is_on:
            refusal = _service_restart()
            refusal.gate = NAME
            raise refusal

    async def drain(self, window: float) -> None:
        """Refuse new sessions, and close the open ones evenly over ``window``; see :meth:`Guard.drain`.

        :raises ValueError: if ``window`` is negative or not finite.
        """
        if not is_between(window, 0):
            raise ValueError(f"window={shown(window)}: use a number of seconds, 0 or more")
        while (holder := self._claim.take()) is None:  # noqa: ASYNC110 - an event would have to survive its event loop
            await anyio.sleep(TICK_S)
        try:
            if not self.is_on or self._staying():
                self.is_on = True
                await self._drain(window)
        finally:
            self._claim.release(holder)

    async def _drain(self, window: float) -> None:
        start = self._clock()
        count = len(self._sessions)
        told: set[Session] = set()  # in another event loop it takes a while until it shows
        self._report(events.DrainStarted(count, window))
        per_second = max(count / window, 1.0) if window else math.inf
        pace = TokenBucket(per_second, per_second, is_full=False, clock=self._clock)
        async with anyio.create_task_group() as tasks:
            while self.is_on and (untold := [session for session in self._staying() if session not in told]):
                if self._clock() - start < window:
                    untold = await self._shed_order.choose(untold, pace.take_all())
                told.update(untold)
                for number, session in enumerate(untold, 1):
                    tasks.start_soon(session.end, _service_restart())
                    if number % ENDS_A_TURN == 0:
                        await anyio.lowlevel.checkpoint()
                await anyio.sleep(TICK_S)
        self._report(events.DrainFinished(len(told), self._clock() - start))

    def forget(self) -> None:
        """Begin anew, in a child process: the parent drains."""
        self.is_on = False
        self._claim.forget()


def _service_restart() -> ServiceRestart:
    return ServiceRestart("service restart", cause="drain", retry_after=1.0)
