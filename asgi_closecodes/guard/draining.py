"""Draining of a process that is about to stop: new sessions are refused, and open ones are closed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Container, Coroutine
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

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
"""Name that refusals during a drain have instead of a gate's."""


@dataclass(slots=True)
class _Running:
    """The drain that is closing sessions."""

    sessions: int
    started_at: float
    window: float
    patience: float
    tasks: TaskGroup
    scheduled: set[Session] = field(default_factory=set)
    """Sessions whose end is scheduled; in another event loop it begins only later."""
    checked: set[Session] = field(default_factory=set)
    """Sessions that end in their own event loop unless they are busy by then."""
    busy: int = 0
    """Busy sessions that it did not wait for."""

    def is_patient(self, now: float) -> bool:
        """Whether busy sessions are still spared."""
        return now - self.started_at < self.patience


class Draining:
    """The drain of one guard, and whether it is on.

    :param sessions: the admitted ones that are not over.
    :param open_sessions: returns those of them that are not about to end.
    :param busy: busy sessions, which are spared for ``patience`` seconds.
    :param shed_order: chooses who goes first.
    :param report: gets events.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        sessions: Collection[Session],
        open_sessions: Callable[[], list[Session]],
        busy: Container[Session],
        shed_order: ShedOrder,
        report: events.Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_on = False
        self._sessions = sessions
        self._open_sessions = open_sessions
        self._busy = busy
        self._shed_order = shed_order
        self._report = report
        self._clock = clock
        self._claim = Claim()
        self._running: _Running | None = None

    def check(self) -> None:
        """Refuse a session with 1012 while the drain is on.

        :raises TryAgainLater: while it is on.
        """
        if self.is_on:
            refusal = _service_restart()
            refusal.gate = NAME
            raise refusal

    async def drain(self, window: float, patience: float = 0.0) -> None:
        """Refuse new sessions, and close the open ones evenly over ``window``; see :meth:`Guard.drain`.

        :raises ValueError: if ``window`` or ``patience`` is negative or not finite.
        """
        for name, seconds in (("window", window), ("patience", patience)):
            if not is_between(seconds, 0):
                raise ValueError(f"{name}={shown(seconds)}: use a number of seconds, 0 or more")
        while (holder := self._claim.take()) is None:  # noqa: ASYNC110 - an event would have to survive its event loop
            await anyio.sleep(TICK_S)
        try:
            if not self.is_on or self._open_sessions():
                self.is_on = True
                await self._drain(window, patience)
        finally:
            self._claim.release(holder)

    async def _drain(self, window: float, patience: float) -> None:
        start = self._clock()
        count = len(self._sessions)
        self._report(events.DrainStarted(count, window, patience))
        async with anyio.create_task_group() as tasks:
            self._running = running = _Running(count, start, window, patience, tasks)
            try:
                await self._end_idle(running)
                await self._end_all(running)
                if self.is_on:
                    self._cancel_leftovers(running)
            finally:
                self._running = None
        self._report(events.DrainFinished(len(running.scheduled), self._clock() - start, running.busy))

    async def _end_idle(self, running: _Running) -> None:
        """End the sessions that are not busy at the drain's pace, until ``patience`` is over or none is left."""
        pace = _pace(running.sessions, running.window, self._clock)
        pace.burst = pace.per_second * TICK_S + 1  # else tokens pile up while sessions are busy
        while self.is_on and running.is_patient(self._clock()) and (rest := self._unscheduled(running)):
            idle = [one for one in rest if one not in self._busy and one not in running.checked]
            due = pace.take_all() if running.window else len(idle)
            chosen = await self._shed_order.choose(idle, due)
            running.checked.update(chosen)
            await self._start_each(running, chosen, self._end_unless_busy)
            await anyio.sleep(TICK_S)

    async def _end_all(self, running: _Running) -> None:
        """End all that are left, evenly over the window."""
        start, window = self._clock(), running.window
        pace = _pace(len(self._unscheduled(running)), window, self._clock)
        while self.is_on and (rest := self._unscheduled(running)):
            if self._clock() - start < window:
                rest = await self._shed_order.choose(rest, pace.take_all())
            running.scheduled.update(rest)
            running.busy += sum(one in self._busy for one in rest)
            await self._start_each(running, rest, _end)
            await anyio.sleep(TICK_S)

    def _cancel_leftovers(self, running: _Running) -> None:
        """Give handlers whose session was over before its turn came as long as those of ended ones.

        They keep the server from stopping, as long as they like.
        """
        patience = max(running.started_at + running.patience - self._clock(), 0.0)
        for session in [*self._sessions]:  # copied: other threads remove some
            session.cancel_if_over(patience if session in self._busy else 0.0)

    def _unscheduled(self, running: _Running) -> list[Session]:
        return [session for session in self._open_sessions() if session not in running.scheduled]

    async def _start_each(
        self, running: _Running, sessions: list[Session], end: Callable[[_Running, Session], Coroutine[Any, Any, None]]
    ) -> None:
        for number, session in enumerate(sessions, 1):
            running.tasks.start_soon(end, running, session)
            if number % ENDS_A_TURN == 0:
                await anyio.lowlevel.checkpoint()

    async def _end_unless_busy(self, running: _Running, session: Session) -> None:
        """End ``session`` unless it is busy, checked in its own event loop: no handler can run in between."""
        if not session.loop.is_here:
            await session.loop.run(self._end_unless_busy, running, session)
            return
        running.checked.discard(session)
        if session not in self._busy:
            running.scheduled.add(session)
            await _end(running, session)

    def state(self, remaining: int) -> events.DrainState | None:
        """Return the state of the drain that is closing sessions; from any thread."""
        if (running := self._running) is None or not self._claim.is_taken:
            return None
        now = self._clock()
        return {
            "sessions": running.sessions,
            "remaining": remaining,
            "elapsed": now - running.started_at,
            "window": running.window,
            "patience": running.patience,
            "waits_for_busy": running.is_patient(now),
        }

    def forget(self) -> None:
        """Reset in a child process: the parent drains."""
        self.is_on = False
        self._running = None
        self._claim.forget()


async def _end(_running: _Running, session: Session) -> None:
    await session.end(_service_restart())


def _service_restart() -> ServiceRestart:
    return ServiceRestart("service restart", cause="drain", retry_after=1.0)


def _pace(sessions: int, window: float, clock: Callable[[], float]) -> TokenBucket:
    per_second = max(sessions / window, 1.0) if window else math.inf
    return TokenBucket(per_second, per_second, is_full=False, clock=clock)
