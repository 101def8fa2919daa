"""Interfaces of the store in which the processes of a cluster gate meet, and their messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from asgi_closecodes.frozen import frozen
from asgi_closecodes.naming import shown

from .lease import Reply, Request

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Store(Protocol):
    """Whatever the methods of a store raise means that it cannot be used for now."""

    async def check_config(self) -> str | None:
        """Return why this store may lose what it knows, if its configuration says so."""

    def describe_error(self, error: Exception) -> str:
        """Return what an error of this store means and what to do about it, in one line without secrets."""

    async def close(self) -> None:
        """Close the connections; the next call opens them again."""

    def forget(self) -> None:
        """Leave the connections alone, since they belong to the parent process."""


class LeaseStore(Store, Protocol):
    """Keeps the leases of all workers."""

    async def sync(self, request: Request) -> Reply:
        """Record what a worker says, and return what it may hold."""


@frozen
class KeyCount:
    """Report of a worker on one key."""

    digest: str
    """Digest of the key."""
    open: int
    """Its sessions in this worker."""
    more: int
    """Sessions that ask for a place."""
    numbers: Sequence[int] = ()
    """Those that the store has given the open ones, from the oldest on; the last ones may have none yet."""


@frozen
class CountRequest:
    """Report of a worker: a state, never a change of one."""

    worker: str
    seq: int
    lease_duration: float
    """Seconds after which it is dead, if it says nothing more."""
    limit: int
    """Sessions of one key; -1 is no limit."""
    counts: Sequence[KeyCount] = ()
    replaces: bool = False
    """Whether who asks for a place gets that of the oldest session, where there is none."""
    acknowledged: Sequence[str] = ()
    """Those of its sessions that it knows to be replaced, as the store has named them."""

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
    """Whether it knew this worker."""
    replaced: Sequence[str]
    """Sessions of this worker that have lost their place, until it has acknowledged that: digest:number."""
    admitted: Sequence[tuple[int, int]]
    """Of each key how many get a place, the last of those who ask, and the first number for those without one, or 0."""


class CountStore(Store, Protocol):
    """Keeps the number of sessions of each key, by worker."""

    async def count(self, request: CountRequest) -> CountReply:
        """Record what a worker says, and return who is admitted."""

    async def listen(self, worker: str, call: Callable[[], object]) -> None:
        """Call ``call`` when this begins, and whenever a session of ``worker`` is replaced: it should count.

        It ends with an error. A call may be lost, as long as the next count brings what it was for.
        """


@frozen
class WorkerState:
    """One worker, as the store knows it."""

    id: str
    grant: int
    used: int
    age: float
    """Seconds since its last sync."""
    expires_in: float
    """Seconds after which its places are free, if it does not sync."""


@frozen
class State:
    """State of one cluster limit in a store."""

    limit: int
    alloc: int
    """Places that are granted, used or not."""
    used: int
    learning: float
    """Seconds for which nobody gets more."""
    workers: tuple[WorkerState, ...]


def checked_name(name: str) -> str:
    """Return ``name``.

    :raises ValueError: if it cannot be a part of a key.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"the name {shown(name)} cannot be used: use 1 to 64 letters, digits, '_', '.', ':' or '-'")
    return name
