"""Gate that limits the sessions of a whole cluster. It admits locally while it has quota; else a session waits."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType

import anyio

from asgi_closecodes.concurrency import COUNTING, EventLoop, running_loop
from asgi_closecodes.session import Session

from .base import ClusterGate
from .lease import Fallback, Lease
from .lease_keeper import LeaseKeeper
from .redis.client import RedisStore
from .store import LeaseStore

PERMIT_TIMEOUT_S = 3.0
"""Seconds that a session waits for a permit in a cluster that has some left."""


class ClusterSessions(ClusterGate):
    """At most ``limit`` open sessions in all processes that share ``redis_url`` and ``name``.

    Each process leases a part of the limit, and admits by itself within that. Its permits are free at once when it
    stops, and within ``lease_duration`` when it dies. Open sessions are never closed because Redis is unreachable.

    :param limit: sessions of the whole cluster; None is no limit, 0 admits nobody. The lowest of all processes holds.
    :param redis_url: a Redis (6.2 or later) or Valkey, see :class:`RedisStore`; or another :class:`LeaseStore`.
    :param name: tells limits on the same Redis apart. The gate's own name is ``cluster_sessions``, followed by
        ``.name`` if that is not ``default``.
    :param lease_duration: seconds that a lease lasts.
    :param fallback: rule of admission when the lease has ended and Redis is unreachable. ``share``: each process admits
        up to its last count and an equal part of 80 % of the free permits; ``open``: all; ``closed``: none.
    :raises ValueError: if a parameter cannot be used (here or when it is changed), or redis-py is not installed.
    """

    _own_name = "cluster_sessions"
    cause = "cluster"

    def __init__(
        self,
        limit: int | None,
        redis_url: str | LeaseStore,
        name: str = "default",
        lease_duration: float = 30.0,
        fallback: Fallback = "share",
    ) -> None:
        store = RedisStore(redis_url, name) if isinstance(redis_url, str) else redis_url
        self._lease = Lease(0)
        self._keeper = LeaseKeeper(self._lease, store, name, self._forward_event)
        self._permit = _Permit(self)
        self._waiting: dict[object, EventLoop] = {}
        super().__init__(name, self._keeper.task, self._lease, lease_duration, fallback, limit=limit)

    def _on_limit_changed(self) -> None:
        super()._on_limit_changed()
        if self._limit is not None:
            self._lease.limit = self._limit

    @property
    def usage(self) -> int:
        """Open sessions of this process."""
        return self._lease.used

    @property
    def lease(self) -> Lease:
        """Lease of this process."""
        return self._lease

    def admit(self, _session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds one of the permits."""
        return self._permit

    def adopt(self, _session: Session, /) -> AbstractAsyncContextManager[None]:
        """Count a session that is already open: here at once, in the cluster with the next sync."""
        self._lease.used += 1
        return self._permit

    async def wait_for_permit(self) -> None:
        """Wait for a permit from the next syncs, and count one session more; refuse it if none comes."""
        lease = self._lease
        if self._limit is None:
            with COUNTING:
                lease.used += 1
            return
        self.start()
        self._task.wake_if_due()
        with anyio.move_on_after(PERMIT_TIMEOUT_S):
            while lease.may_wait:
                waiting = object()
                self._wait(waiting, EventLoop(running_loop()))
                try:
                    await self._task.turn()
                finally:
                    self._wait(waiting, None)
                if self.acquire():
                    return
        with COUNTING:
            lease.record_shortfall()
        self._task.wake_if_due()
        usage = lease.used if lease.reply is None else lease.reply.used
        raise self._refusal(usage)

    def acquire(self) -> bool:
        """Count one session more if there is a permit now; return whether there is."""
        with COUNTING:
            return self._lease.acquire()

    def release(self) -> None:
        """Count one session less."""
        with COUNTING:
            self._lease.release()

    def _wait(self, waiting: object, loop: EventLoop | None) -> None:
        with COUNTING:
            if loop is None:
                self._waiting.pop(waiting, None)
            else:
                self._waiting[waiting] = loop
            self._lease.waiting = len(self._waiting)

    def start(self) -> None:
        """Start the task that talks to the store.

        :raises RuntimeError: on trio.
        """
        if self._waiting and not self._task.is_running:  # those of a closed event loop no longer wait
            with COUNTING:
                self._waiting = {one: loop for one, loop in self._waiting.items() if loop.is_alive}
                self._lease.waiting = len(self._waiting)
        super().start()

    def excess(self) -> int:
        """Return this process's share of the sessions above a lowered limit."""
        return self._lease.excess

    def forked(self) -> None:
        """Reset in a child process."""
        self._waiting = {}
        self._keeper.forked()


class _Permit:
    """Permit of any session; with quota, it is checked and taken without an await in between."""

    __slots__ = ("_gate",)

    def __init__(self, gate: ClusterSessions) -> None:
        self._gate = gate

    async def __aenter__(self) -> None:
        if not self._gate.acquire():
            await self._gate.wait_for_permit()

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.release()
