"""Lease of one worker on a part of the limit: a state machine over its syncs, without any I/O.

A worker holds a *quota*: the sessions that it may have open without asking while its *lease* lasts. A sync
tells the store what the worker holds; the answer is its next quota and a new lease (``sync.lua``).
"""

from __future__ import annotations

import math
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import Literal, TypeAlias

from asgi_closecodes.frozen import frozen

Fallback: TypeAlias = Literal["share", "open", "closed"]
"""Rule of admission after the lease has ended because the store is unreachable, see :class:`ClusterSessions`."""

# A clock that goes on while the machine sleeps, as the store's does.
_CLOCK: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)

SYNC_TIMEOUT_S = 1.0
"""Seconds that a sync may take."""

FIRST_SYNC_TIMEOUT_S = 3.0
"""The same without a connection: TLS, a password and Sentinels take many round trips."""

LEASE_SHARE = 0.95
"""Share of its duration after which a lease ends here, counted from the request. The store waits for all of it."""

MAX_REFRESH_SHARE = 0.4
"""Share of a lease's duration within which every worker has synced, roughly; ``sync.lua`` has it too."""

RETRY_INTERVAL_S = 1.0
"""Seconds between two syncs while the store is unreachable."""

UNREACHABLE_FOR_S = 5.0
"""Seconds for which the store counts as unreachable after a failed sync."""

FALLBACK_SHARE = 0.8
"""Share of the free permits that all workers together may use while the store is unreachable."""

MAX_HEADROOM = 64
"""Permits that a worker asks for in advance, at most."""


@frozen
class Request:
    """Report of a worker to the cluster; see the arguments of ``sync.lua``. Durations are in milliseconds."""

    worker: str
    seq: int
    acked: int
    elapsed: int
    leased: int
    used: int
    have: int
    need: int
    headroom: int
    limit: int
    lease_duration: int
    leave: int

    def arguments(self) -> tuple[str | int, ...]:
        """Return the arguments of the script."""
        return astuple(self)


@frozen
class Reply:
    """Answer of the cluster."""

    seq: int
    grant: int
    """Permits that the store has recorded for this worker."""
    quota: int
    """Sessions that this worker may have open."""
    alloc: int
    """Permits that the store has recorded for all workers."""
    used: int
    """Open sessions of all workers, as last reported."""
    workers: int
    limit: int
    """Lowest limit that any worker has."""
    learning: int
    """Milliseconds for which nobody gets more permits, since the store has lost its data; 0 if it has not."""


def worker_id() -> str:
    """Return host, process and a random number, as an id that is never used again."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class Terms:
    """Rules for a process without the store, and the duration of its lease.

    :param lease_duration: seconds.
    """

    __slots__ = ("fallback", "lease_duration")

    def __init__(self, lease_duration: float = 30.0, fallback: Fallback = "share") -> None:
        self.lease_duration = lease_duration
        self.fallback: Fallback = fallback


class Lease(Terms):
    """The quota of one worker, and when to ask for the next.

    :param limit: sessions of the whole cluster.
    :param lease_duration: seconds.
    :param clock: monotonic seconds.
    :param jitter: a random number between two bounds.
    """

    __slots__ = (
        "_acked",
        "_acked_at",
        "_admitted",
        "_clock",
        "_failed_at",
        "_failing_since",
        "_in_fallback",
        "_is_pending",
        "_jitter",
        "_known",
        "_lasts",
        "_limit",
        "_limit_set_at",
        "_next",
        "_rate",
        "_recorded",
        "_sent_at",
        "_shortfall",
        "_target",
        "_target_at",
        "ends",
        "is_full",
        "quota",
        "reply",
        "seq",
        "timeout",
        "used",
        "waiting",
        "worker",
    )

    def __init__(
        self,
        limit: int,
        lease_duration: float = 30.0,
        fallback: Fallback = "share",
        *,
        clock: Callable[[], float] = _CLOCK,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        super().__init__(lease_duration, fallback)
        self._clock = clock
        self._jitter = jitter
        self.used = 0
        """Open sessions."""
        self.waiting = 0
        """Sessions that wait for the next sync."""
        self.reset()
        self.limit = limit

    def reset(self) -> None:
        """Start as a new worker: in another process, on another store, or in a new event loop."""
        self.worker = worker_id()
        self.quota = 0
        self.ends = -math.inf
        """Monotonic seconds of the lease's end."""
        self.seq = self._acked = 0
        self.timeout = FIRST_SYNC_TIMEOUT_S
        """Seconds that the next sync may take."""
        self._lasts = 0.0
        self.reply: Reply | None = None
        self._known: Reply | None = None
        """Last answer of a store that knew all workers; before there is one, the last answer."""
        self.is_full = False
        """Whether the store had no permit left at the last sync."""
        self._sent_at = self._acked_at = self._failed_at = self._next = -math.inf
        self._failing_since = math.inf
        self._is_pending = self._in_fallback = False
        self._recorded = self._admitted = self._shortfall = 0
        self._rate = 0.0
        self._target: int | None = None
        self._target_at = -math.inf

    @property
    def limit(self) -> int:
        """Sessions of the whole cluster."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._limit_set_at = self._clock()
        self._next = -math.inf

    @property
    def limit_age(self) -> float:
        """Seconds since the limit was set."""
        return self._clock() - self._limit_set_at

    # Sessions

    def acquire(self) -> bool:
        """Count one session more if the quota, or the fallback, allows it; return whether it does."""
        now = self._clock()
        if (now < self.ends and self.used < self.quota) or (self._is_in_fallback(now) and self.used < self._share()):
            self.used += 1
            self._admitted += 1
            return True
        return False

    def release(self) -> None:
        """Count one session less."""
        self.used -= 1

    def record_shortfall(self) -> None:
        """Count a session that got no permit: the next sync asks for one."""
        self._shortfall += 1

    def _is_in_fallback(self, now: float) -> bool:
        if now >= self.ends:
            # An ended lease is not enough: this process may have been stopped, and others have its permits.
            has_failed = now - self._failed_at < UNREACHABLE_FOR_S
            self._in_fallback = has_failed and (self.reply is not None or self._is_unreachable_for_long())
        return self._in_fallback

    def _is_unreachable_for_long(self) -> bool:
        # At the start one slow sync is no outage: many processes that start together are slow.
        return self._failed_at - self._failing_since >= UNREACHABLE_FOR_S

    def _share(self) -> float:
        match self.fallback:
            case "open":
                return math.inf
            case "closed":
                return 0
            case "share":
                if self._known is None:
                    return int(FALLBACK_SHARE * self.limit)
                # All shares together stay within the limit if all workers know the same answer: each keeps its grant,
                # and the free permits are divided equally.
                limit, alloc = min(self._known.limit, self.limit), max(self._known.alloc, 1)
                free = FALLBACK_SHARE * max(limit - alloc, 0) / max(self._known.workers, 1)
                return int(self._known.grant * min(limit / alloc, 1) + free)

    @property
    def time_left(self) -> float:
        """Seconds until the lease ends; 0 if there is none."""
        return max(self.ends - self._clock(), 0.0)

    @property
    def in_fallback(self) -> bool:
        """Whether the fallback decides: the store is unreachable, or came back without its data."""
        return self._is_in_fallback(self._clock())

    @property
    def may_wait(self) -> bool:
        """Whether the next sync may bring the permit that a session did not get."""
        if self.reply is None:
            return not self.in_fallback
        return self.time_left > 0 and not self.is_full

    @property
    def excess(self) -> int:
        """Sessions to shed after the limit was lowered: this worker's share of the cluster's excess."""
        return 0 if self._target is None else max(self.used - self._target, 0)

    # Syncs

    @property
    def headroom(self) -> int:
        """Permits to hold in advance: those for two refreshes, at least a 16th of an equal share, up to 8."""
        workers, limit = (1, 0) if self.reply is None else (self.reply.workers, self.reply.limit)
        least = min(max(limit // (16 * max(workers, 1)), 1), 8)
        return min(max(math.ceil(2 * self._rate * self.lease_duration / 3), least), MAX_HEADROOM)

    @property
    def pace(self) -> float:
        """Shortest time between two syncs, in seconds; it grows with the workers, to spare the store."""
        return min(max((0 if self.reply is None else self.reply.workers) / 2000, 0.1), 2.0)

    def wait(self) -> float:
        """Return the seconds until the next sync is due."""
        now = self._clock()
        if self._failed_at >= self._sent_at:
            return max(self._next - now, 0.0)
        due = min(self._next, self._sent_at + self.pace) if self._is_urgent() else self._next
        return max(due - now, 0.0)

    def _is_urgent(self) -> bool:
        return (
            self.waiting > 0
            or self._shortfall > 0
            or self._recorded != max(self.quota, self.used)
            or self.quota - self.used > 2 * self.headroom
            or (self._admitted > 0 and self.quota - self.used < self.headroom / 2 and not self.is_full)
        )

    def ask(self, *, leave: bool = False) -> Request:
        """Return the next sync; permits that it gives back are not used from now on."""
        now = self._clock()
        is_valid = now < self.ends
        self._measure(now)
        is_connected = self.reply is not None and self._failing_since == math.inf
        self.timeout = SYNC_TIMEOUT_S if is_connected else FIRST_SYNC_TIMEOUT_S
        self._lasts = self.lease_duration * LEASE_SHARE
        if not is_valid:
            self.quota = self.used  # other workers may have the rest by now
        elif leave:
            self.quota = 0
        elif self.quota - self.used > 2 * self.headroom:
            self.quota = self.used + self.headroom
        self.seq += 1
        self._is_pending = True
        self._sent_at = now
        self._next = now + self.lease_duration * self._jitter(0.27, MAX_REFRESH_SHARE)
        return Request(
            worker=self.worker,
            seq=self.seq,
            acked=self._acked,
            elapsed=int((now - self._acked_at) * 1000) if self._acked else 0,
            leased=int(is_valid),
            used=self.used,
            have=self.quota,
            need=self.waiting + min(self._shortfall, MAX_HEADROOM),
            headroom=self.headroom,
            limit=self.limit,
            lease_duration=int(self.lease_duration * 1000),
            leave=int(leave),
        )

    def _measure(self, now: float) -> None:
        since = now - self._sent_at
        if 0 < since < math.inf:
            self._rate += (self._admitted / since - self._rate) * (1 - math.exp(-3 * since / self.lease_duration))
        self._admitted = 0

    def answer(self, reply: Reply) -> None:
        """Apply the answer to the last sync; ignore stale answers."""
        if reply.seq != self.seq or not self._is_pending:
            return
        self._is_pending = False
        now = self._clock()
        self._acked, self._acked_at = reply.seq, now
        was_in_fallback = self._is_in_fallback(now)
        before, self.reply = self.reply, reply
        if self._known is None or not reply.learning:
            self._known = reply
        self.ends = self._sent_at + self._lasts
        self._in_fallback = was_in_fallback and reply.learning > 0
        self._failed_at, self._failing_since = -math.inf, math.inf
        self._shortfall = 0
        self._recorded = reply.grant
        # Above the limit not even a released permit may be used again.
        self.quota = max(reply.quota, self.used) if reply.alloc <= reply.limit else 0
        self.is_full = reply.alloc >= reply.limit or reply.learning > 0
        self._shed_after_lowering(reply, before)

    def _shed_after_lowering(self, reply: Reply, before: Reply | None) -> None:
        # Only a lowered limit sheds sessions. One that was exceeded while the store was away does not.
        over = 0 if reply.learning else reply.used - reply.limit
        was_lowered = self._target is not None or (before is not None and reply.limit < before.limit)
        if over <= 0 or not was_lowered:
            self._target = None
            return
        # Not at every sync: sessions that others have shed meanwhile are not reported yet, and would be shed twice.
        if self._target is None or self._acked_at - self._target_at >= MAX_REFRESH_SHARE * self.lease_duration:
            # Rounded at random, so that the workers' sum meets the limit, although each sheds whole sessions.
            self._target = self.used - int(self.used * over / reply.used + self._jitter(0, 1))
            self._target_at = self._acked_at

    def fail(self) -> None:
        """Record that the last sync failed."""
        self._is_pending = False
        now = self._clock()
        self._next = now + RETRY_INTERVAL_S * self._jitter(0.5, 1)
        # A longer wait means that this process was stopped: no evidence about the store.
        if now - self._sent_at < 1.5 * self.timeout:
            self._failed_at, self._failing_since = now, min(self._failing_since, now)
        else:
            self._failed_at, self._failing_since = -math.inf, math.inf
