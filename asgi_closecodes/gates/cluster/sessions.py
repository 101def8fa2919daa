"""The gate over a whole cluster: admission is local while there is quota; a session waits only where there is none."""

from __future__ import annotations

import os
import weakref
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol, get_args

import anyio

from asgi_closecodes import events
from asgi_closecodes.exceptions import TryAgainLater
from asgi_closecodes.gates.sessions import Limited
from asgi_closecodes.session import Session

from .lease import Fallback, Lease
from .store import LeaseStore, RedisStore
from .worker import Worker

SHORTEST_TTL = 2.0
"""Seconds: a lease has to outlast a refresh, one that fails after a second, and another one."""

PATIENCE = 3.0
"""Seconds that a session waits for a place in a cluster that has some left."""


class Forked(Protocol):
    """What has to know when it is in a child process."""

    def forked(self) -> None:
        """Begin anew."""


children_of_fork: weakref.WeakSet[Forked] = weakref.WeakSet()


class ClusterSessions(Limited):
    """At most ``limit`` open sessions in all processes that share ``redis_url`` and ``name``.

    Each process leases a part of the limit, and admits by itself from that. Its places come back at once when it
    stops, and within ``ttl`` when it dies. Open sessions are never closed because Redis is away.

    :param limit: sessions of the whole cluster; None is no limit, 0 admits nobody. The lowest that a process has holds.
    :param redis_url: of a Redis (6.2 or later) or Valkey, see :class:`RedisStore`; or another :class:`LeaseStore`.
    :param name: tells limits on the same Redis apart.
    :param ttl: seconds that a lease lasts.
    :param fallback: what admits when a lease has ended and Redis is away. ``share``: each process, up to what it had
        and an equal part of 80 % of what was free; ``open``: everybody; ``closed``: nobody.
    :raises ValueError: if a parameter cannot be used (here or when it is changed), or redis-py is not installed.
    """

    __slots__ = ("__weakref__", "_lease", "_report", "_worker")
    cause = "cluster"

    def __init__(
        self,
        limit: int | None,
        redis_url: str | LeaseStore,
        name: str = "default",
        ttl: float = 30.0,
        fallback: Fallback = "share",
    ) -> None:
        store = RedisStore(redis_url, name) if isinstance(redis_url, str) else redis_url
        self._report: events.Observer = _nobody
        self._lease = Lease(0)
        self._worker = Worker(self._lease, store, name, self._tell)
        super().__init__(limit)
        self.ttl = ttl
        self.fallback = fallback
        children_of_fork.add(self)

    @property
    def limit(self) -> int | None:
        """What may be in use at once in the whole cluster; None is no limit, 0 admits nobody."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        Limited.limit.__set__(self, limit)  # type: ignore[attr-defined]
        if limit is None:
            self._worker.task.stop_soon()
        else:
            self._lease.limit = limit

    @property
    def ttl(self) -> float:
        """Seconds that a lease lasts."""
        return self._lease.ttl

    @ttl.setter
    def ttl(self, ttl: float) -> None:
        self._lease.ttl = checked_ttl(ttl)

    @property
    def fallback(self) -> Fallback:
        """What admits when a lease has ended and Redis is away: ``share``, ``open`` or ``closed``."""
        return self._lease.fallback

    @fallback.setter
    def fallback(self, fallback: Fallback) -> None:
        self._lease.fallback = checked_fallback(fallback)

    @property
    def active(self) -> int:
        """Open sessions of this process."""
        return self._lease.used

    @property
    def lease(self) -> Lease:
        """The part of the limit that this process has."""
        return self._lease

    def admit(self, _session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds one of the places."""
        return _Place(self)

    async def wait_for_place(self) -> None:
        """Count one session more as soon as a sync brings a place, or refuse it."""
        lease = self._lease
        if self._limit is None:
            lease.used += 1
            return
        self._worker.task.start()
        self._worker.task.look()
        with anyio.move_on_after(PATIENCE):
            while lease.may_wait:
                lease.waiting += 1
                try:
                    await self._worker.task.turn()
                finally:
                    lease.waiting -= 1
                if lease.take():
                    return
        lease.miss()
        self._worker.task.look()
        usage = lease.used if lease.reply is None else lease.reply.used
        raise TryAgainLater(cause=self.cause, usage=usage, limit=self._limit)

    def excess(self) -> int:
        """Return how many sessions are too many, after the limit was lowered: this process's part of them."""
        return self._lease.excess

    def report_to(self, report: events.Observer) -> None:
        """Tell events to ``report`` from now on."""
        self._report = report

    def _tell(self, event: events.Event) -> None:
        self._report(event)

    def start(self) -> None:
        """Begin to sync.

        :raises RuntimeError: on trio.
        """
        if self._limit is not None:
            self._worker.task.start()

    def sample(self) -> None:
        """Have a sync made if one is due."""
        self.start()
        self._worker.task.look()

    async def stop(self) -> None:
        """Stop to sync, and give the places back to the cluster."""
        await self._worker.task.stop()

    def forked(self) -> None:
        """Begin anew in a child process."""
        self._worker.forked()


class _Place(AbstractAsyncContextManager[None]):
    """One session's place: checked and taken without an await in between, where there is quota."""

    __slots__ = ("_gate",)

    def __init__(self, gate: ClusterSessions) -> None:
        self._gate = gate

    async def __aenter__(self) -> None:
        if not self._gate._lease.take():  # noqa: SLF001 - its own
            await self._gate.wait_for_place()

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate._lease.give_back()  # noqa: SLF001


def _nobody(_event: events.Event) -> None:
    pass


def checked_ttl(ttl: float) -> float:
    """Return ``ttl``.

    :raises ValueError: if a lease of it would end between two syncs.
    """
    if isinstance(ttl, bool) or not (isinstance(ttl, (int, float)) and SHORTEST_TTL <= ttl <= 3600):
        raise ValueError(
            f"ttl={ttl!r}: use {SHORTEST_TTL:g} to 3600 seconds; a shorter lease would end between two syncs"
        )
    return ttl


def checked_fallback(fallback: Fallback) -> Fallback:
    """Return ``fallback``.

    :raises ValueError: if there is none of that name.
    """
    if fallback not in get_args(Fallback):
        raise ValueError(f"fallback={fallback!r}: use 'share', 'open' or 'closed'")
    return fallback


def _forked() -> None:
    for gate in [*children_of_fork]:
        gate.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
