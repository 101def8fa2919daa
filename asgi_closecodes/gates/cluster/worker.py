"""The one task of a process that keeps its lease: it syncs when a sync is due, never inside of a session."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable

from asgi_closecodes import events
from asgi_closecodes.channel import on_asyncio

from .lease import TIMEOUT, Lease, Reply
from .store import LeaseStore


class Worker:
    """Keeps ``lease`` with ``store``.

    :param name: of the limit, for events.
    :param report: told what happens.
    """

    def __init__(self, lease: Lease, store: LeaseStore, name: str, report: Callable[[events.Event], None]) -> None:
        self.lease = lease
        self._store = store
        self._name = name
        self._report = report
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._outcome = asyncio.Event()
        self._forget_the_past()

    def _forget_the_past(self) -> None:
        self._problem: str | None = None
        self._failures = 0
        self._away_since = 0.0
        self._is_adrift = self._is_learning = self._looked_at_risk = False
        self._told_of_limit: int | None = None

    def start(self) -> None:
        """Have the task run in this event loop.

        :raises RuntimeError: on trio, where redis-py does not run.
        """
        if not on_asyncio():
            raise RuntimeError("cluster gates need asyncio: redis-py does not run on trio; use an asyncio worker")
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._wake, self._outcome = asyncio.Event(), asyncio.Event()
            self._task = loop.create_task(self._run(), context=contextvars.Context())

    def stop_soon(self) -> None:
        """End the task, and give the places back; it may be called from any thread."""
        if self._task is not None and not self._task.get_loop().is_closed():
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    async def stop(self) -> None:
        """End the task, and give the places back."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    def forked(self) -> None:
        """Begin anew in a child process: the lease, the task and the connections are the parent's."""
        self._task = None
        self._store.forget()
        self._forget_the_past()
        self.lease.used = self.lease.waiting = 0
        self.lease.reset()

    def look(self) -> None:
        """Have a sync made if one is due."""
        if self.lease.wait() <= 0:
            self._wake.set()

    async def outcome(self) -> None:
        """Wait until the next sync was answered, or was not."""
        self._wake.set()
        await self._outcome.wait()

    async def _run(self) -> None:
        try:
            await self._store.close()  # it may be of another event loop
            while not _is_cancelled():
                await self._sync()
                await self._pause()
        finally:
            self._settle()
            await self._leave()

    async def _pause(self) -> None:
        while (delay := self.lease.wait()) > 0 and not _is_cancelled():
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    def _settle(self) -> None:
        """Let those go on who wait for an outcome."""
        outcome, self._outcome = self._outcome, asyncio.Event()
        outcome.set()

    async def _sync(self) -> None:
        lease = self.lease
        request = lease.ask()
        try:
            async with asyncio.timeout(TIMEOUT):
                reply = await self._store.sync(request)
        except Exception as error:
            lease.fail()
            self._failed(self._store.explained(error))
            await self._store.close()
        else:
            before = lease.reply
            lease.answer(reply)
            self._succeeded(reply, before)
            await self._look_at_risk()
        finally:
            self._settle()

    async def _leave(self) -> None:
        was_recorded = self.lease.reply is not None
        request = self.lease.ask(leave=True)
        self.lease.reset()
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._store.close()  # a cancelled command may have left an answer behind
                if was_recorded:
                    await self._store.sync(request)
        except Exception as error:
            self._report(events.ClusterSyncFailed(self._name, self._store.explained(error)))
        finally:
            await self._store.close()

    async def _look_at_risk(self) -> None:
        if self._looked_at_risk:
            return
        self._looked_at_risk = True
        try:
            async with asyncio.timeout(TIMEOUT):
                risk = await self._store.risk()
        except Exception:
            await self._store.close()  # it may not be allowed to tell
        else:
            if risk is not None:
                self._report(events.ClusterMisconfigured(self._name, risk))

    # What is told

    def _failed(self, problem: str) -> None:
        self._failures += 1
        self._report(events.ClusterSyncFailed(self._name, problem))
        if self._failures == 1:
            self._away_since = time.monotonic()
        if problem != self._problem:
            self._problem = problem
            self._report(events.ClusterAway(self._name, problem, self.lease.time_left, self.lease.fallback))
        if self.lease.is_adrift and not self._is_adrift:
            self._is_adrift = True
            self._report(events.ClusterFallback(self._name, self.lease.fallback))

    def _succeeded(self, reply: Reply, before: Reply | None) -> None:
        lease = self.lease
        self._report(
            events.ClusterSynced(
                name=self._name,
                used=lease.used,
                quota=lease.quota,
                limit=reply.limit,
                cluster_used=reply.used,
                cluster_granted=reply.alloc,
                workers=reply.workers,
                learning=reply.learning / 1000,
                lease=lease.time_left,
                fallback=lease.is_adrift,
            )
        )
        if self._problem is not None:
            self._report(events.ClusterBack(self._name, self._failures, time.monotonic() - self._away_since))
            self._problem = None
            self._failures = 0
            self._is_adrift = False
        if reply.learning and not self._is_learning:
            self._report(events.ClusterLearning(self._name, reply.learning / 1000))
        self._is_learning = reply.learning > 0
        # Right after a change the others, and what is recorded, may still have the limit before it.
        settled = before is None or lease.limit_age > lease.ttl
        if reply.limit >= lease.limit:
            self._told_of_limit = None
        elif settled and reply.limit != self._told_of_limit:
            self._told_of_limit = reply.limit
            self._report(
                events.ClusterMisconfigured(
                    self._name,
                    f"this process has a limit of {lease.limit}, another one of {reply.limit}: the lower one holds. "
                    "Give all the same limit, or another cluster_name to what is another application",
                )
            )


def _is_cancelled() -> bool:
    """Whether this task is to end: redis-py swallows a cancellation that comes while it connects."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
