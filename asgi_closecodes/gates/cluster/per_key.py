"""The gate over one key in a whole cluster, as for five sessions of a user: it asks the store for every session.

All sessions that come while a call is under way are asked for together in the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from asgi_closecodes import events
from asgi_closecodes.exceptions import TryAgainLater
from asgi_closecodes.gates.sessions import client_network
from asgi_closecodes.session import Session

from .base import ClusterGate
from .lease import FIRST_TIMEOUT, RETRY, TIMEOUT, Fallback, Terms, worker_id
from .store import CountStore, RedisStore
from .task import ProcessTask
from .worker import Health

_MOST_AT_ONCE = 500
"""Keys in one call, so that it does not hold up the server's others."""

_SAID_AGAIN = 8 * 3600.0
"""Seconds after which everything is said again; the store forgets what nobody speaks of for a day."""


class ClusterSessionsPerKey(ClusterGate):
    """At most ``limit`` open sessions of one key in all processes that share ``redis_url`` and ``name``.

    Each session costs a round trip. While Redis is away, each process holds the limit by itself, or refuses all
    (``fallback="closed"``); what it has admitted then is counted as soon as Redis is back.

    :param limit: sessions of one key; None is no limit, 0 admits nobody.
    :param redis_url: see :class:`ClusterSessions`; or a :class:`CountStore`.
    :param key: the key of a session: text, bytes, a whole number, or None for one that is not limited. By default
        :func:`client_network`. Only its hash is stored.
    :param name: tells limits on the same Redis apart.
    :param ttl: seconds after which the sessions of a process that died count no more.
    :param fallback: ``share`` and ``open`` mean the same here.
    :raises ValueError: if a parameter cannot be used (here or when it is changed), or redis-py is not installed.
    """

    cause = "client"

    def __init__(  # noqa: PLR0917
        self,
        limit: int | None,
        redis_url: str | CountStore,
        key: Callable[[Session], Hashable] = client_network,
        name: str = "default",
        ttl: float = 30.0,
        fallback: Fallback = "share",
    ) -> None:
        self._key = key
        self._store = RedisStore(redis_url, name) if isinstance(redis_url, str) else redis_url
        self._health = Health(name, self._tell)
        self._task = ProcessTask(self._say, self._due, self._leave)
        self._begin()
        super().__init__(limit)
        self._join(Terms(), ttl, fallback)

    def _begin(self) -> None:
        self._worker = worker_id()
        self._seq = 0
        self._beat_at = self._said_at = -math.inf
        self._sessions: dict[str, int] = {}
        self._changed: set[str] = set()
        """Keys of which the store does not know the number."""
        self._waiting: dict[str, list[asyncio.Future[bool]]] = {}
        self.active = 0
        """Open sessions of all keys in this process."""

    def _follow_limit(self) -> None:
        super()._follow_limit()
        self._said_at = -math.inf  # what is open is said with the next call

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds one of the places of the session's key.

        :raises TypeError: if the key is neither text, bytes nor a whole number.
        """
        return _Place(self, _digest(self._key(session)))

    async def take(self, digest: str | None) -> None:
        """Count one session of a key more, or refuse it."""
        if digest is None or self._limit is None:
            self._count_in(digest)
            return
        self._task.start()
        if self._health.is_good:
            is_admitted = await self._ask(digest)
        elif is_admitted := self._room_alone(digest) > 0:
            self._count_in(digest)
            self._changed.add(digest)
        if not is_admitted:
            usage = self._limit if self._health.is_good else self._sessions.get(digest, 0)
            raise TryAgainLater(cause=self.cause, usage=usage, limit=self._limit)

    def _count_in(self, digest: str | None) -> None:
        self.active += 1
        if digest is not None:
            self._sessions[digest] = self._sessions.get(digest, 0) + 1

    def give_back(self, digest: str | None) -> None:
        """Count one session of a key less."""
        self.active -= 1
        if digest is None:
            return
        self._sessions[digest] -= 1
        if not self._sessions[digest]:
            del self._sessions[digest]
        if self._limit is not None:
            self._changed.add(digest)
            self._task.look()

    def _room_alone(self, digest: str) -> int:
        """Return how many more this process admits by itself."""
        return 0 if self.fallback == "closed" else (self._limit or 0) - self._sessions.get(digest, 0)

    async def _ask(self, digest: str) -> bool:
        """Return whether the store admits one more, which is counted then."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(digest, []).append(answer)
        self._task.look()
        try:
            return await answer
        except BaseException:
            if answer.done() and not answer.cancelled() and answer.result():
                self.give_back(digest)
            raise

    def _answer(self, digest: str, answers: list[asyncio.Future[bool]], admitted: int) -> None:
        for number, answer in enumerate(answers):
            if number < admitted:
                self._count_in(digest)
            answer.set_result(number < admitted)

    # The task

    def _due(self) -> float:
        now = time.monotonic()
        if not self._health.is_good:
            return max(self._beat_at + RETRY - now, 0.0)
        return 0.0 if self._waiting or self._changed else max(self._beat_at + self.ttl / 3 - now, 0.0)

    async def _say(self) -> None:
        now = time.monotonic()
        if now - self._said_at > _SAID_AGAIN:
            self._said_at = now
            self._changed.update(self._sessions)
        digests = [*dict.fromkeys([*self._waiting, *self._changed])][:_MOST_AT_ONCE]
        asking = {digest: self._waiting.pop(digest, []) for digest in digests}
        self._changed.difference_update(digests)
        self._seq += 1
        self._beat_at = now
        counts = [(digest, self._sessions.get(digest, 0), len(_open(asking[digest]))) for digest in digests]
        try:
            async with asyncio.timeout(TIMEOUT if self._seq > 1 and self._health.is_good else FIRST_TIMEOUT):
                limit = -1 if self._limit is None else self._limit
                known, admitted = await self._store.count(self._worker, self._seq, self.ttl, limit, counts)
        except BaseException as error:
            self._changed.update(digests)
            self._decide_alone(asking)
            if not isinstance(error, Exception):
                raise
            self._health.failed(self._store.explained(error), 0.0, self.fallback, is_adrift=True)
            await self._store.close()
            return
        if not known and self._seq > 1:  # it has lost what it knew
            self._changed.update(self._sessions)
        for digest, count in zip(digests, admitted, strict=True):
            answers = _open(asking[digest])
            self._answer(digest, answers, count)
            if len(answers) < count:  # who was cancelled meanwhile is counted there
                self._changed.add(digest)
        await self._health.succeeded(self._store)

    def _decide_alone(self, asking: dict[str, list[asyncio.Future[bool]]]) -> None:
        for digest, answers in asking.items():
            self._answer(digest, _open(answers), self._room_alone(digest))

    async def _leave(self) -> None:
        self._decide_alone(self._waiting)
        self._waiting = {}
        self._changed = set()
        worker, self._worker = self._worker, worker_id()
        self._said_at = -math.inf
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._store.close()  # a cancelled command may have left an answer behind
                await self._store.count(worker, self._seq + 1, 0, -1, ())  # without time left it is dead at once
        except Exception as error:
            self._tell(events.ClusterSyncFailed(self._health.name, self._store.explained(error)))
        finally:
            self._seq = 0
            await self._store.close()

    def forked(self) -> None:
        """Begin anew in a child process."""
        self._task.forget()
        self._store.forget()
        self._health.forget()
        self._begin()


def _open(answers: list[asyncio.Future[bool]]) -> list[asyncio.Future[bool]]:
    return [answer for answer in answers if not answer.done()]


class _Place(AbstractAsyncContextManager[None]):
    __slots__ = ("_digest", "_gate")

    def __init__(self, gate: ClusterSessionsPerKey, digest: str | None) -> None:
        self._gate = gate
        self._digest = digest

    async def __aenter__(self) -> None:
        await self._gate.take(self._digest)

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.give_back(self._digest)


def _digest(key: Hashable) -> str | None:
    """Return what stands for ``key`` in the store: neither its text nor its length."""
    match key:
        case None:
            return None
        case bytes():
            data = b"b" + key
        case str():
            data = b"s" + key.encode("utf-8", "surrogatepass")
        case int():
            data = b"i%d" % key
        case _:
            raise TypeError(
                f"a key of type {type(key).__name__} is not the same in all processes: "
                "give text, bytes or a whole number"
            )
    return hashlib.blake2b(data, digest_size=16).hexdigest()
