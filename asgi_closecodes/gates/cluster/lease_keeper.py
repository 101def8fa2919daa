"""Task that keeps the lease of a process: it syncs when due, never in a session's task, and reports events."""

from __future__ import annotations

import asyncio
import time

from asgi_closecodes import events
from asgi_closecodes.concurrency import COUNTING

from .lease import FIRST_SYNC_TIMEOUT_S, SYNC_TIMEOUT_S, Fallback, Lease, Reply
from .store import LeaseStore, Store
from .task import ProcessTask


class Health:
    """Health of a store: reports failures, once for each reason, and the recovery.

    :param name: of the limit, for events.
    :param report: gets the events.
    """

    def __init__(self, name: str, report: events.Observer) -> None:
        self.name = name
        self.report = report
        self.forget()

    def forget(self) -> None:
        """Reset in a child process."""
        self._reported: set[str] = set()
        self._failures = 0
        self._since = 0.0
        self._in_fallback = self._is_config_checked = False

    @property
    def is_good(self) -> bool:
        """Whether the last call succeeded."""
        return not self._failures

    def failed(self, problem: str, lease: float, fallback: Fallback, *, in_fallback: bool) -> None:
        """Record a call that failed; report the first of each reason."""
        self.report(events.ClusterSyncFailed(self.name, problem))
        if not self._failures:
            self._since = time.monotonic()
        self._failures += 1
        if problem not in self._reported:
            self._reported.add(problem)
            self.report(events.ClusterUnreachable(self.name, problem, lease, fallback))
        if in_fallback and not self._in_fallback:
            self._in_fallback = True
            self.report(events.ClusterFallback(self.name, fallback))

    async def succeeded(self, store: Store) -> None:
        """Record a call that succeeded; report a recovery, and check the store's configuration once."""
        if self._failures:
            self.report(events.ClusterRecovered(self.name, self._failures, time.monotonic() - self._since))
            self._reported.clear()
            self._failures = 0
            self._in_fallback = False
        if self._is_config_checked:
            return
        self._is_config_checked = True
        try:
            async with asyncio.timeout(SYNC_TIMEOUT_S):
                problem = await store.check_config()
        except Exception:
            await store.close()  # the user may lack the right to read the configuration
        else:
            if problem is not None:
                self.report(events.ClusterMisconfigured(self.name, problem))


class LeaseKeeper:
    """Keeps ``lease`` with ``store``.

    :param name: of the limit, for events.
    :param report: gets the events.
    """

    def __init__(self, lease: Lease, store: LeaseStore, name: str, report: events.Observer) -> None:
        self.lease = lease
        self._store = store
        self._name = name
        self._report = report
        self._health = Health(name, report)
        self._reported_limit: int | None = None
        self.task = ProcessTask(self._sync, lease.wait, self._leave, report, store.forget)

    def forked(self) -> None:
        """Reset in a child process: the lease, the task and the connections are the parent's."""
        self.task.forget()
        self._store.forget()
        self._health.forget()
        self.lease.used = self.lease.waiting = 0
        self.lease.reset()

    async def _sync(self) -> None:
        lease = self.lease
        with COUNTING:
            request = lease.ask()
        try:
            async with asyncio.timeout(lease.timeout):
                reply = await self._store.sync(request)
        except Exception as error:
            with COUNTING:
                lease.fail()
            problem = self._store.describe_error(error)
            self._health.failed(problem, lease.time_left, lease.fallback, in_fallback=lease.in_fallback)
            await self._store.close()
        else:
            before = lease.reply
            with COUNTING:
                lease.answer(reply)
            self._report_reply(reply, before)
            await self._health.succeeded(self._store)

    async def _leave(self) -> None:
        may_be_recorded = self.lease.seq > 0 and self._health.is_good
        with COUNTING:
            request = self.lease.ask(leave=True)
            self.lease.reset()
        try:
            async with asyncio.timeout(FIRST_SYNC_TIMEOUT_S):
                await self._store.close()  # a cancelled command may have left an unread answer
                if may_be_recorded:
                    await self._store.sync(request)
        except Exception as error:
            self._report(events.ClusterSyncFailed(self._name, self._store.describe_error(error)))
        finally:
            await self._store.close()

    def _report_reply(self, reply: Reply, before: Reply | None) -> None:
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
                fallback=lease.in_fallback,
            )
        )
        if reply.learning and not (before is not None and before.learning):
            self._report(events.ClusterRelearning(self._name, reply.learning / 1000))
        # Right after a change, other workers and the store may still have the previous limit.
        settled = before is None or lease.limit_age > lease.lease_duration
        if reply.limit >= lease.limit:
            self._reported_limit = None
        elif settled and reply.limit != self._reported_limit:
            self._reported_limit = reply.limit
            problem = (
                f"this process has a limit of {lease.limit}, another one of {reply.limit}: the lower one holds. "
                "Give all the same limit, or another cluster_name to what is another application"
            )
            self._report(events.ClusterMisconfigured(self._name, problem))
