"""Interfaces of the store that the processes of a cluster gate share, and their messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from asgi_closecodes.frozen import frozen
from asgi_closecodes.naming import shown

from .lease import Reply, Request

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Store(Protocol):
    """Store of a cluster gate. Any exception of its methods means that it cannot be used for now."""

    async def check_config(self) -> str | None:
        """Return why this store's configuration may lose data; None if it does not."""

    def describe_error(self, error: Exception) -> str:
        """Return what an error of this store means and what to do about it, in one line without secrets."""

    async def close(self) -> None:
        """Close the connections; the next call opens them again."""

    def forget(self) -> None:
        """Drop the connections without closing them, since they belong to the parent process."""


class LeaseStore(Store, Protocol):
    """Keeps the leases of all workers."""

    async def sync(self, request: Request) -> Reply:
        """Record a worker's report, and return its quota."""


@frozen
class KeyCount:
    """Report of a worker on one key."""

    digest: str
    """Digest of the key."""
    open: int
    """Its sessions in this worker."""
    more: int
    """Sessions that ask for a permit."""
    numbers: Sequence[int] = ()
    """Numbers of the open sessions, given by the store, oldest first; the newest sessions may have none yet."""


@frozen
class CountRequest:
    """Report of a worker: its state, not changes, so that a repeated report does no harm."""

    worker: str
    seq: int
    lease_duration: float
    """Seconds without a report after which the worker counts as dead."""
    limit: int
    """Sessions of one key; -1 is no limit."""
    counts: Sequence[KeyCount] = ()
    replaces: bool = False
    """Whether a new session gets the permit of the oldest one if none is free."""
    acknowledged: Sequence[str] = ()
    """Replaced sessions that this worker knows of, under the store's names."""

    def arguments(self) -> Sequence[str | int]:
        """Return the arguments of the script."""
        arguments: list[str | int] = [
            self.worker,
            self.seq,
            int(self.lease_duration * 1000),
            self.limit,
            int(self.replaces),
        ]
        arguments += [len(self.acknowledged), *self.acknowledged]
        for count in self.counts:
            arguments += [count.open, count.more, ",".join(map(str, count.numbers))]
        return arguments


@frozen
class CountReply:
    """Answer of the store."""

    known: bool
    """Whether the store knew this worker."""
    replaced: Sequence[str]
    """Replaced sessions of this worker, as digest:number, until it has acknowledged them."""
    admitted: Sequence[tuple[int, int]]
    """By key: how many of the asking sessions are admitted, which are the last; and the first number for sessions
    without one, or 0."""


class CountStore(Store, Protocol):
    """Keeps the number of sessions of each key, by worker."""

    async def count(self, request: CountRequest) -> CountReply:
        """Record a worker's report, and return how many more are admitted."""

    async def listen(self, worker: str, call: Callable[[], object]) -> None:
        """Call ``call`` at the start and whenever a session of ``worker`` is replaced, so that it syncs.

        It runs until an error is raised. A call may get lost: the next count has the same information.
        """


@frozen
class WorkerState:
    """State of one worker in the store."""

    id: str
    grant: int
    used: int
    age: float
    """Seconds since its last sync."""
    expires_in: float
    """Seconds without a sync after which its permits are free."""


@frozen
class State:
    """State of one cluster limit in a store."""

    limit: int
    alloc: int
    """Permits that are granted, used or not."""
    used: int
    learning: float
    """Seconds for which nobody gets more permits, since the store has lost its data."""
    workers: tuple[WorkerState, ...]


def checked_name(name: str) -> str:
    """Return ``name``.

    :raises ValueError: if it cannot be part of a key.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"the name {shown(name)} cannot be used: use 1 to 64 letters, digits, '_', '.', ':' or '-'")
    return name
