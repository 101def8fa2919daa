"""Periodic work: a list of jobs, and one task that runs those due, for as long as any is needed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import anyio

from asgi_closecodes.concurrency import Claim, EventLoop, cancelled_from_outside, on_asyncio, running_loop, spawn

from .loops import EventLoops

TICK_S = 0.1
"""Seconds between two ticks."""

LINGER_S = 15.0
"""Seconds the ticker keeps running after the last session when no lifespan is active."""


@dataclass(slots=True, eq=False)
class Job:
    """Periodic piece of work.

    :param name: name in the report of a failure.
    :param run: does the work, or returns an async function that does, which runs in a task of its own. Until it has
        ended, other jobs run, but not this one. No coroutine: nobody would await it if the event loop ends before.
    :param is_needed: returns whether the job has to run, which keeps the ticker running. None: it runs whenever the
        ticker does.
    :param interval: seconds between two runs, at least; by default it runs at every tick.
    :param finish: called when the ticker stops.
    """

    name: str
    run: Callable[[], Callable[[], Awaitable[object]] | None]
    is_needed: Callable[[], bool] | None
    interval: float = 0.0
    finish: Callable[[], object] | None = None
    due_at: float = field(default=-math.inf, init=False)
    """Monotonic seconds of the next run; a job in progress stays due."""
    progress: Claim = field(default_factory=Claim, init=False)
    """Event loop in which the rest of the last run is in progress."""


class Ticker:
    """Runs jobs in one event loop at a time, and moves to another one when that is gone.

    A job that fails is reported, and runs again.

    :param jobs: in the order in which they run.
    :param loops: where the ticker may run.
    :param is_used: whether there are sessions or lifespans.
    :param failed: called with the name of a job and its exception.
    :param clock: monotonic seconds.
    :param sleep: waits for a number of seconds.
    """

    __slots__ = ("_claim", "_clock", "_failed", "_is_used", "_jobs", "_loops", "_needy", "_sleep", "_task", "loop")

    def __init__(
        self,
        jobs: Iterable[Job],
        loops: EventLoops,
        *,
        is_used: Callable[[], bool],
        failed: Callable[[str, BaseException], object],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
    ) -> None:
        self._jobs = (*jobs,)
        # Each function once: they are called for every session.
        self._needy = (*{job.is_needed: job for job in self._jobs if job.is_needed is not None}.values(),)
        self._loops = loops
        self._is_used = is_used
        self._failed = failed
        self._clock = clock
        self._sleep = sleep
        self._claim = Claim()
        self._task: asyncio.Task[object] | None = None
        self.loop: Any = None
        """Event loop in which it ticks, asyncio's or trio's, unless that was closed with it."""

    @property
    def is_running(self) -> bool:
        """Whether it ticks, in any event loop."""
        return self._claim.is_taken

    @property
    def is_lost(self) -> bool:
        """Whether it ticked in an event loop that runs no more."""
        return self._claim.is_lost

    def start_if_needed(self) -> None:
        """Start ticking if any job is needed: in this event loop, else in one of the guard's."""
        if self.is_running or not self._is_any_needed(self._needy):
            return
        if (loop := running_loop()) is None:
            self._loops.call_elsewhere(self.start_if_needed)
        elif (holder := self._claim.take()) is not None:
            self.loop, self._task = loop, None  # which may be one of an event loop that was closed
            spawn(self._tick_until_unneeded, holder)

    async def stop_if_unused(self) -> None:
        """Stop in this event loop, which may be closed next, unless sessions or another lifespan go on.

        Only on asyncio: trio ends such tasks itself.
        """
        if (task := self._task) is not None and running_loop() is self.loop and not self._is_used():
            task.cancel()
            await asyncio.sleep(0)  # it is told
            await asyncio.sleep(0)  # it ends

    async def _tick_until_unneeded(self, holder: EventLoop) -> None:
        self._task = asyncio.current_task() if on_asyncio() else None
        try:
            used_at = self._clock()
            while self._claim.is_held_by(holder) and self._is_any_needed(self._needy):
                if self._is_used():
                    used_at = self._clock()
                elif self._clock() - used_at > LINGER_S:
                    break
                self.tick()
                await self._sleep(TICK_S)
        finally:
            if self._claim.release(holder):  # else another event loop has taken over
                self.loop = self._task = None
                for job in self._jobs:
                    if job.finish is not None:
                        self._call(job, job.finish)
                if self._is_used():
                    self._loops.call_elsewhere(self.start_if_needed)  # the sessions of other event loops go on

    def tick(self) -> None:
        """Run the jobs that are due, in an event loop."""
        now = self._clock()
        for job in self._jobs:
            is_due = now >= job.due_at and not job.progress.is_taken
            if is_due and (job.is_needed is None or self._is_any_needed([job])):
                job.due_at = now + job.interval
                self._call(job, self._begin, job)

    def forget(self) -> None:
        """Reset in a child process: the parent goes on ticking."""
        self._claim.forget()
        self.loop = self._task = None
        for job in self._jobs:
            job.due_at = -math.inf
            job.progress.forget()

    def _begin(self, job: Job) -> None:
        if (rest := job.run()) is not None and (holder := job.progress.take()) is not None:
            spawn(self._go_on, job, holder, rest)

    async def _go_on(self, job: Job, holder: EventLoop, rest: Callable[[], Awaitable[object]]) -> None:
        try:
            await rest()
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and cancelled_from_outside():
                raise
            self._failed(job.name, error)
        finally:
            job.progress.release(holder)

    def _is_any_needed(self, jobs: Iterable[Job]) -> bool:
        for job in jobs:
            try:
                if job.is_needed is not None and job.is_needed():
                    return True
            except Exception as error:  # of a gate of the user's
                self._failed(job.name, error)
                return True
        return False

    def _call(self, job: Job, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except (Exception, asyncio.CancelledError) as error:  # cancelled: a future that it reads
            self._failed(job.name, error)
