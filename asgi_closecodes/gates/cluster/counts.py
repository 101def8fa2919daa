"""Bookkeeping of one worker's sessions by key: a state machine over its syncs, without any I/O.

A sync reports each key to the store: how many sessions this worker has, and how many more ask for a permit. The
answer says how many of these are admitted (``count.lua``). Sessions that ask during a sync are part of the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import field
from itertools import count, repeat
from typing import Generic, Protocol, TypeVar

from asgi_closecodes.frozen import frozen
from asgi_closecodes.gates.per_key import SessionsByKey
from asgi_closecodes.session import Session

from .lease import RETRY_INTERVAL_S, worker_id
from .store import CountReply, CountRequest, KeyCount

MAX_KEYS_PER_SYNC = 500
"""Keys in one call; more would delay the server's other clients."""

FULL_SYNC_INTERVAL_S = 8 * 3600.0
"""Seconds after which all keys are reported again; the store forgets keys that are not reported for a day."""


class Pending(Protocol):
    """Session that asks for a permit."""

    @property
    def session(self) -> Session:
        """The session."""

    @property
    def is_open(self) -> bool:
        """Whether it still waits for a decision."""


PendingT = TypeVar("PendingT", bound=Pending)


@frozen
class Sync(Generic[PendingT]):
    """One call of the store, and the state that its answer refers to."""

    request: CountRequest
    pending: dict[str, list[PendingT]]
    """Sessions that ask for a permit, by key."""
    unnumbered: dict[str, list[Session]]
    """Open sessions to which the store will give a number, by key."""

    def still_open(self) -> Iterator[tuple[str, PendingT]]:
        """Yield the sessions that still wait for a decision, with their keys."""
        for digest, pending in self.pending.items():
            yield from ((digest, one) for one in pending if one.is_open)


@frozen
class Decisions(Generic[PendingT]):
    """Answer of the store, as decisions about single sessions."""

    refused: list[PendingT] = field(default_factory=list)
    superseded: list[PendingT] = field(default_factory=list)
    """Refused too: more than the limit came at once, and the last of them would have replaced these."""
    admitted: list[tuple[str, PendingT, int | None]] = field(default_factory=list)
    """Admitted sessions, with their keys, and the numbers that the store has given them."""
    replaced: list[tuple[str, Session]] = field(default_factory=list)
    """Open sessions, with their keys, whose permits other sessions have now."""


class Counts(Generic[PendingT]):
    """Knows which changes the store has not been told yet, and what its answers mean.

    :param sessions: the open ones by the digests of their keys. The owner adds and drops them, and calls
        :meth:`mark_changed`; their numbers are set here.
    :param clock: monotonic seconds.
    """

    __slots__ = (
        "_acknowledged",
        "_changed",
        "_clock",
        "_full_sync_at",
        "_in_flight",
        "_is_notified",
        "_last_replaces",
        "_seq",
        "_sessions",
        "_synced_at",
        "_waiting",
        "worker",
    )

    def __init__(self, sessions: SessionsByKey, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._sessions = sessions
        self._clock = clock
        self._synced_at = -math.inf
        self._waiting: dict[str, list[PendingT]] = {}
        self._in_flight: Sync[PendingT] | None = None  # repeated if its event loop was closed during the call
        self._is_notified = False
        self._last_replaces = False
        self._reset()

    def _reset(self) -> None:
        self.worker = worker_id()
        """Name of this worker in the store."""
        self._seq = 0
        self._full_sync_at = -math.inf
        self._changed: set[str] = set()  # keys whose count the store does not know
        self._acknowledged: set[str] = set()  # replaced sessions, until the store has seen the acknowledgement

    # Sessions

    def ask_for(self, digest: str, pending: PendingT) -> None:
        """Ask for a permit with the next sync."""
        self._waiting.setdefault(digest, []).append(pending)

    def waiting_for(self, digest: str) -> int:
        """Return how many permits of a key the next sync asks for."""
        return len(self._waiting.get(digest, ()))

    def take_waiting(self) -> list[tuple[str, PendingT]]:
        """Remove and return the waiting sessions, with their keys, since no sync will come."""
        waiting, self._waiting = self._waiting, {}
        return [(digest, one) for digest, pending in waiting.items() for one in pending if one.is_open]

    def mark_changed(self, digest: str) -> None:
        """Report ``digest`` with the next sync: its sessions have changed."""
        self._changed.add(digest)

    def mark_all_changed(self) -> None:
        """Report all keys with the next sync."""
        self._full_sync_at = -math.inf

    def notify(self) -> None:
        """Sync now: one of the sessions may have been replaced."""
        self._is_notified = True

    # Syncs

    @property
    def is_first(self) -> bool:
        """Whether this worker has synced at most once."""
        return self._seq <= 1

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to report or to ask for."""
        return not (self._waiting or self._changed or self._acknowledged or self._is_notified)

    def wait(self, lease_duration: float, *, is_reachable: bool) -> float:
        """Return the seconds until the next sync is due."""
        if is_reachable and not self.is_settled:
            return 0.0
        interval = lease_duration / 3 if is_reachable else RETRY_INTERVAL_S
        return max(self._synced_at + interval - self._clock(), 0.0)

    def ask(self, *, lease_duration: float, limit: int | None, replaces: bool) -> Sync[PendingT]:
        """Return the next sync; :meth:`answer` or :meth:`abandon` ends it."""
        self._synced_at = self._clock()
        if self._synced_at - self._full_sync_at > FULL_SYNC_INTERVAL_S or replaces != self._last_replaces:
            self._report_all()
        self._last_replaces = replaces
        self._is_notified = False
        self._seq += 1
        if self._in_flight is not None:
            for digest, lost in self._in_flight.still_open():
                self.ask_for(digest, lost)
            self._changed.update(self._in_flight.pending)
        digests = [*dict.fromkeys([*self._waiting, *self._changed])][:MAX_KEYS_PER_SYNC]
        pending = {digest: [one for one in self._waiting.pop(digest, ()) if one.is_open] for digest in digests}
        self._changed.difference_update(digests)
        request = CountRequest(
            worker=self.worker,
            seq=self._seq,
            lease_duration=lease_duration,
            limit=-1 if limit is None else limit,
            counts=[self._count_of(digest, len(pending[digest]), replaces=replaces) for digest in digests],
            replaces=replaces,
            acknowledged=[*self._acknowledged],
        )
        unnumbered = {
            digest: [session for session, number in self._sessions.of(digest).items() if number is None]
            for digest in digests
        }
        self._in_flight = Sync(request, pending, unnumbered)
        return self._in_flight

    def _report_all(self) -> None:
        self._full_sync_at = self._synced_at
        self._changed.update(key for key in self._sessions if isinstance(key, str))

    def _count_of(self, digest: str, more: int, *, replaces: bool) -> KeyCount:
        sessions = self._sessions.of(digest)
        numbers = [number for number in sessions.values() if number is not None] if replaces else ()
        return KeyCount(digest, len(sessions), more, numbers)

    def answer(self, sync: Sync[PendingT], reply: CountReply) -> Decisions[PendingT]:
        """Return the decisions in the answer to ``sync``; the caller carries them out at once.

        Sessions that were decided meanwhile, as by the answer to another sync, are left out.
        """
        decisions: Decisions[PendingT] = Decisions()
        if not reply.known and sync.request.seq > 1:  # the store has lost its data
            self._report_all()
        for (digest, pending), (permits, first) in zip(sync.pending.items(), reply.admitted, strict=True):
            numbers: Iterator[int | None] = count(first) if first else repeat(None)
            self._set_numbers(digest, sync.unnumbered[digest], numbers)
            waiting = [one for one in pending if one.is_open]
            if len(waiting) < permits:  # the store also counts those cancelled meanwhile
                self._changed.add(digest)
            refused = max(len(waiting) - permits, 0)
            (decisions.superseded if permits and sync.request.replaces else decisions.refused).extend(waiting[:refused])
            decisions.admitted.extend((digest, one, next(numbers)) for one in waiting[refused:])
        for name in reply.replaced:
            digest, _, number = name.rpartition(":")
            sessions = self._sessions.of(digest)
            decisions.replaced.extend((digest, one) for one, its in sessions.items() if str(its) == number)
        self._acknowledged.difference_update(sync.request.acknowledged)
        self._acknowledged.update(reply.replaced)
        self._end(sync)
        return decisions

    def _set_numbers(self, digest: str, unnumbered: list[Session], numbers: Iterator[int | None]) -> None:
        for session, number in zip(unnumbered, numbers, strict=False):
            if session in self._sessions.of(digest):
                self._sessions.put(digest, session, number)

    def abandon(self, sync: Sync[PendingT]) -> list[tuple[str, PendingT]]:
        """Return the sessions, with their keys, that wait for a sync that failed; the store may have counted it."""
        self._changed.update(sync.pending)
        self._end(sync)
        return [*sync.still_open()]

    def _end(self, sync: Sync[PendingT]) -> None:
        if self._in_flight is sync:
            self._in_flight = None

    def leave(self) -> CountRequest:
        """Return the last sync of this worker, and go on as a new worker.

        Its lease duration is 0, so the store takes the old worker for dead at once.
        """
        request = CountRequest(self.worker, self._seq + 1, lease_duration=0, limit=-1)
        self._reset()
        return request
