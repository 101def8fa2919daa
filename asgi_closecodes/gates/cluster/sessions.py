"""The gate over a whole cluster: admission is local while there is quota; a session waits only where there is none."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType

import anyio

from asgi_closecodes.concurrency import COUNTING, EventLoop, running_loop
from asgi_closecodes.exceptions import TryAgainLater
from asgi_closecodes.session import Session

from .base import ClusterGate
from .lease import Fallback, Lease
from .lease_keeper import LeaseKeeper
from .redis.client import RedisStore
from .store import LeaseStore

PLACE_TIMEOUT_S = 3.0
"""Seconds that a session waits for a permit in a cluster that has some left."""


class ClusterSessions(ClusterGate):
    """At most ``limit`` open sessions in all processes that share ``redis_url`` and ``name``.

    Each process leases a part of the limit, and admits by itself from that. Its permits come back at once when it
    stops, and within ``lease_duration`` when it dies. Open sessions are never closed because Redis is away.

    :param limit: sessions of the whole cluster; None is no limit, 0 admits nobody. The lowest that a process has holds.
    :param redis_url: of a Redis (6.2 or later) or Valkey, see :class:`RedisStore`; or another :class:`LeaseStore`.
    :param name: tells limits on the same Redis apart; the gate's own is ``cluster_sessions``, and ``.name`` behind it
        where it is not ``default``.
    :param lease_duration: seconds that a lease lasts.
    :param fallback: what admits when a lease has ended and Redis is away. ``share``: each process, up to what it had
        and an equal part of 80 % of what was free; ``open``: everybody; ``closed``: nobody.
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
        self._keeper = LeaseKeeper(self._lease, store, name, self._tell)
        self._permit = _Permit(self)
        self._waiting: dict[object, EventLoop] = {}
        super().__init__(name, self._keeper.task, self._lease, lease_duration, fallback, limit=limit)

    def _follow_limit(self) -> None:
        super()._follow_limit()
        if self._limit is not None:
            self._lease.limit = self._limit

    @property
    def usage(self) -> int:
        """Open sessions of this process."""
        return self._lease.used

    @property
    def lease(self) -> Lease:
        """The part of the limit that this process has."""
        return self._lease

    def admit(self, _session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds one of the permits."""
        return self._permit

    def adopt(self, _session: Session, /) -> AbstractAsyncContextManager[None]:
        """Count a session that is open already: here at once, in the cluster with the next sync."""
        self._lease.used += 1
        return self._permit

    async def wait_for_place(self) -> None:
        """Count one session more as soon as a sync brings a permit, or refuse it."""
        lease = self._lease
        if self._limit is None:
            with COUNTING:
                lease.used += 1
            return
        self.start()
        self._task.wake_if_due()
        with anyio.move_on_after(PLACE_TIMEOUT_S):
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
        raise TryAgainLater(cause=self.cause, usage=usage, limit=self._limit)

    def acquire(self) -> bool:
        """Count one session more, if there is a permit for it now."""
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
        """Begin to talk to the store.

        :raises RuntimeError: on trio.
        """
        if self._waiting and not self._task.is_running:  # those of an event loop that was closed wait no more
            with COUNTING:
                self._waiting = {one: loop for one, loop in self._waiting.items() if loop.is_alive}
                self._lease.waiting = len(self._waiting)
        super().start()

    def excess(self) -> int:
        """Return how many sessions are too many, after the limit was lowered: this process's part of them."""
        return self._lease.excess

    def forked(self) -> None:
        """Begin anew in a child process."""
        self._waiting = {}
        self._keeper.forked()


class _Permit:
    """Any session's permit: checked and taken without an await in between, where there is quota."""

    __slots__ = ("_gate",)

    def __init__(self, gate: ClusterSessions) -> None:
        self._gate = gate

    async def __aenter__(self) -> None:
        if not self._gate.acquire():
            await self._gate.wait_for_place()

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.release()
