"""The gate over one key in a whole cluster, as for five sessions of a user: it asks the store for every session.

All sessions that come while a call is under way are asked for together in the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from itertools import count, repeat
from types import TracebackType
from typing import Literal, TypeAlias

from asgi_closecodes import events
from asgi_closecodes.concurrency import COUNTING, EventLoop
from asgi_closecodes.exceptions import TryAgainLater
from asgi_closecodes.gates.per_key import MaxSessionsPerKey, client_network
from asgi_closecodes.session import Session

from .base import ClusterGate
from .lease import FIRST_TIMEOUT, RETRY, TIMEOUT, Fallback, Terms, worker_id
from .lease_keeper import Health
from .redis.client import RedisStore
from .store import CountReply, CountRequest, CountStore, KeyCount
from .task import ProcessTask

_MOST_AT_ONCE = 500
"""Keys in one call, so that it does not hold up the server's others."""

_SAID_AGAIN = 8 * 3600.0
"""Seconds after which everything is said again; the store forgets what nobody speaks of for a day."""

_DEAF = 3
"""Attempts to be called that have to fail, while the store answers, to be told of."""

_Answer: TypeAlias = "asyncio.Future[TryAgainLater | None]"
"""The refusal of a session that asks for a place, or None where it is counted."""


class ClusterSessionsPerKey(ClusterGate, MaxSessionsPerKey):
    """At most ``limit`` open sessions of one key in all processes that share ``redis_url`` and ``name``.

    Each session costs a round trip. While Redis is away, each process holds the limit by itself, or refuses all
    (``fallback="closed"``); what it has admitted then is counted as soon as Redis is back.

    When the handler sets :attr:`Session.key`, the store is asked while it goes on: a session for which there is no
    room is shed a moment later.

    :param limit: sessions of one key; None is no limit, 0 admits nobody.
    :param redis_url: see :class:`ClusterSessions`; or a :class:`CountStore`.
    :param key: the key of a session: text, bytes, a whole number, or None for one that is not limited. By default
        :func:`client_network`. Only its hash is stored.
    :param name: tells limits on the same Redis apart; the gate's own is ``cluster_sessions_per_key``, and ``.name``
        behind it where it is not ``default``.
    :param ttl: seconds after which the sessions of a process that died count no more.
    :param fallback: ``share`` and ``open`` mean the same here.
    :param when_full: ``refuse`` the new session, or ``replace_oldest``: the new one takes the place of the key's oldest
        in any process, which is shed there within a round trip; where Redis' message to that process is lost, within
        ``ttl / 3``. A process that stands still cannot do it before it goes on. One newcomer brings a key that is
        above the limit, after an outage or since it was lowered, down to it. No process holds more than twice the
        limit, with those that were replaced and still count.
    :raises ValueError: if a parameter cannot be used (here or when it is changed), or redis-py is not installed.
    :raises TypeError: if ``key`` cannot be called.
    """

    def __init__(  # noqa: PLR0917
        self,
        limit: int | None,
        redis_url: str | CountStore,
        key: Callable[[Session], Hashable] = client_network,
        name: str = "default",
        ttl: float = 30.0,
        fallback: Fallback = "share",
        when_full: Literal["refuse", "replace_oldest"] = "refuse",
    ) -> None:
        self._cluster_name = name
        self._in_shadow = False
        self._store = RedisStore(redis_url, name) if isinstance(redis_url, str) else redis_url
        self._health = Health(name, self._tell)
        self._task = ProcessTask(self._say, self._due, self._leave, self._tell, self._store.forget)
        self._ear = ProcessTask(self._listen, self._deaf_for, _nothing, self._tell)
        MaxSessionsPerKey.__init__(self, limit, key, when_full)
        self._join(Terms(), ttl, fallback)

    def _forget(self) -> None:
        super()._forget()
        self._worker = worker_id()
        self._seq = 0
        self._beat_at = self._said_at = -math.inf
        self._said_as = self._mode
        self._changed: set[str] = set()
        """Keys of which the store does not know the number."""
        self._waiting: dict[str, list[_Asking]] = {}
        self._asked: dict[str, list[_Asking]] = {}
        """Those of the call that is under way, to be asked again where its event loop is closed under it."""
        self._heard: set[str] = set()
        """Sessions that were replaced, of which the store does not know that this worker has heard."""
        self._is_called = False
        self._deaf_at = -math.inf
        self._deaf = 0
        self._refused: set[Session] = set()

    def _follow_limit(self) -> None:
        super()._follow_limit()
        self._said_at = -math.inf  # what is open is said with the next call
        if self._limit is None:
            self._ear.stop_soon()

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds one of the places of the session's key.

        :raises TypeError: if the key is neither text, bytes nor a whole number.
        """
        self._in_shadow = False
        return _Place(self, self.digest(session), session)

    def admit_in_shadow(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return the same, for which no other session leaves."""
        self._in_shadow = True
        return _Place(self, self.digest(session), session)

    @property
    def _mode(self) -> Literal["refuse", "replace_oldest"]:
        return "refuse" if self._in_shadow else self.when_full

    def digest(self, session: Session) -> str | None:
        """Return what stands for the key of ``session`` in the store."""
        return _digest(self.key(session))

    def ask(self, digest: str | None, session: Session) -> _Answer | None:
        """Count one session of a key more, or return what the answer of the store will be.

        :raises TryAgainLater: if this process refuses it by itself.
        """
        if digest is None or self._limit is None:
            with COUNTING:
                self._hold(digest, session)
            return None
        waiting = len(self._waiting.get(digest, ()))
        if self.when_full == "replace_oldest" and self._holds_twice(digest, self._limit, waiting):
            usage = self.active_of(digest)
            raise TryAgainLater(cause=self.cause, usage=usage, limit=self._limit, is_overload=self.is_overload)
        self.start()
        if not self._health.is_good:
            self._take_alone(digest, session)
            return None
        asking = _Asking(session)
        with COUNTING:
            self._waiting.setdefault(digest, []).append(asking)
        self._task.look()
        return asking.answer

    def give_back(self, key: Hashable, session: Session) -> None:
        """Count one session of a key less, once."""
        with COUNTING:
            before = self.active
            super().give_back(key, session)
            is_less = self.active < before
        if isinstance(key, str) and self._limit is not None and is_less:
            self._changed.add(key)
            self._task.look()

    def _take_alone(self, digest: str, session: Session) -> None:
        if self.fallback == "closed":
            raise TryAgainLater(
                cause=self.cause, usage=self.active_of(digest), limit=self._limit, is_overload=self.is_overload
            )
        (self.take_or_refuse if self._in_shadow else self.take)(digest, session)
        self._changed.add(digest)

    def _decide_alone(self, asking: Iterable[tuple[str, list[_Asking]]]) -> None:
        with COUNTING:
            for digest, all_asking in asking:
                for one in _open(all_asking):
                    try:
                        self._take_alone(digest, one.session)
                    except TryAgainLater as refusal:
                        one.settle(refusal)
                    else:
                        self._admit(digest, one)

    def _admit(self, digest: str, asking: _Asking) -> None:
        if not asking.settle(None):  # its event loop was closed
            self.give_back(digest, asking.session)

    # The task that tells the store

    def _due(self) -> float:
        now = time.monotonic()
        if not self._health.is_good:
            return max(self._beat_at + RETRY - now, 0.0)
        if self._waiting or self._changed or self._heard or self._is_called:
            return 0.0
        return max(self._beat_at + self.ttl / 3 - now, 0.0)

    async def _say(self) -> None:
        self._beat_at = time.monotonic()
        if self._beat_at - self._said_at > _SAID_AGAIN or self._said_as != self._mode:
            self._say_all()
        self._is_called = False
        self._seq += 1
        with COUNTING:
            for digest, lost in self._asked.items():
                self._waiting.setdefault(digest, []).extend(_open(lost))
            digests = [*dict.fromkeys([*self._waiting, *self._changed])][:_MOST_AT_ONCE]
            self._asked = asking = {digest: self._waiting.pop(digest, []) for digest in digests}
            self._changed.difference_update(digests)
            request = CountRequest(
                worker=self._worker,
                seq=self._seq,
                ttl=self.ttl,
                limit=-1 if self._limit is None else self._limit,
                counts=[self._count_of(digest, len(_open(asking[digest]))) for digest in digests],
                replaces=self._said_as == "replace_oldest",
                heard=[*self._heard],
            )
            unnumbered = {
                digest: [session for session, number in self._sessions.of(digest).items() if number is None]
                for digest in digests
            }
        try:
            async with asyncio.timeout(TIMEOUT if self._seq > 1 and self._health.is_good else FIRST_TIMEOUT):
                reply = await self._store.count(request)
        except BaseException as error:
            self._changed.update(digests)
            self._decide_alone(asking.items())
            if not isinstance(error, Exception):
                raise
            self._health.failed(self._store.explained(error), 0.0, self.fallback, is_adrift=True)
            await self._store.close()
            return
        if not reply.known and self._seq > 1:  # it has lost what it knew
            self._say_all()
        with COUNTING:
            for digest, (admitted, first) in zip(digests, reply.admitted, strict=True):
                numbers = count(first) if first else repeat(None)
                self._answer(digest, unnumbered[digest], asking[digest], admitted, numbers)
            self._replaced(request, reply)
        await self._health.succeeded(self._store)

    def _say_all(self) -> None:
        self._said_at, self._said_as = self._beat_at, self._mode
        self._changed.update(key for key in self._sessions.copy() if isinstance(key, str))

    def _count_of(self, digest: str, more: int) -> KeyCount:
        sessions = self._sessions.of(digest)
        numbers = [number for number in sessions.values() if number is not None]
        return KeyCount(digest, len(sessions), more, numbers if self._said_as == "replace_oldest" else ())

    def _answer(
        self,
        digest: str,
        unnumbered: list[Session],
        asking: list[_Asking],
        admitted: int,
        numbers: Iterator[int | None],
    ) -> None:
        for session, number in zip(unnumbered, numbers, strict=False):
            if session in self._sessions.of(digest):
                self._sessions.put(digest, session, number)
        asking = _open(asking)
        if len(asking) < admitted:  # who was cancelled meanwhile is counted there
            self._changed.add(digest)
        refused = max(len(asking) - admitted, 0)
        # Of more than the limit that came at once, each would have been replaced by one of the last.
        cause = "replaced" if admitted and self._said_as == "replace_oldest" else self.cause
        for one in asking[:refused]:
            one.settle(TryAgainLater(cause=cause, usage=self._limit, limit=self._limit, is_overload=self.is_overload))
        for one in asking[refused:]:
            self._hold(digest, one.session, next(numbers))
            self._admit(digest, one)

    def _replaced(self, request: CountRequest, reply: CountReply) -> None:
        for name in reply.replaced:
            digest, _, number = name.rpartition(":")
            for session in [one for one, its in self._sessions.of(digest).items() if str(its) == number]:
                self._replace(digest, session)
        self._heard.difference_update(request.heard)
        self._heard.update(reply.replaced)

    async def _leave(self) -> None:
        with COUNTING:
            waiting, self._waiting = self._waiting, {}
        self._decide_alone(waiting.items())
        self._changed.clear()
        self._heard.clear()
        request = CountRequest(self._worker, self._seq + 1, ttl=0, limit=-1)  # without time left it is dead at once
        self._worker = worker_id()
        self._seq = 0
        self._said_at = -math.inf
        try:
            async with asyncio.timeout(FIRST_TIMEOUT if self._health.is_good else TIMEOUT):
                await self._store.close()  # a cancelled command may have left an answer behind
                await self._store.count(request)
        except Exception as error:
            self._tell(events.ClusterSyncFailed(self._health.name, self._store.explained(error)))
        finally:
            await self._store.close()

    # The task that is called when one of its sessions was replaced

    def _deaf_for(self) -> float:
        return max(self._deaf_at + RETRY - time.monotonic(), 0.0)

    async def _listen(self) -> None:
        try:
            await self._store.listen(self._worker, self._called)
        except Exception as error:
            self._deaf_at = time.monotonic()
            self._deaf += self._health.is_good
            if self._deaf == _DEAF:
                problem = (
                    f"this process is not called when one of its sessions is replaced: {self._store.explained(error)}. "
                    f"Such a session may leave {self.ttl / 3:g} s late"
                )
                self._tell(events.ClusterMisconfigured(self._health.name, problem))

    def _called(self) -> None:
        self._deaf = 0
        self._is_called = True
        self._task.look()

    # What the guard asks

    def start(self) -> None:
        """Begin to talk to the store.

        :raises RuntimeError: on trio.
        """
        super().start()
        if self._limit is not None and self.when_full == "replace_oldest":
            self._ear.start()

    async def stop(self) -> None:
        """Stop until it is started or asked again, and say what has ended."""
        self._is_stopped = True
        await self._ear.stop()
        await super().stop()

    def expired(self) -> Iterator[Session]:
        """Yield the sessions for whose new key the store has no place."""
        yield from [session for session in self._refused.copy() if not session.is_leaving]

    def refuse_late(self, session: Session) -> None:
        """Have a session end that has begun, unless it is forgiven."""
        self._refused.add(session)

    def forgive(self, session: Session) -> None:
        """Take note that a session does not want another key any more."""
        self._refused.discard(session)

    def forked(self) -> None:
        """Begin anew in a child process: tasks and connections are the parent's."""
        self._task.forget()
        self._ear.forget()
        self._store.forget()
        self._health.forget()
        self._forget()


class _Asking:
    """A session that asks for a place, of a key that stands beside it; in whatever event loop."""

    __slots__ = ("_is_settled", "_loop", "answer", "session")

    def __init__(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        self._loop = EventLoop(loop)
        self._is_settled = False
        self.session = session
        self.answer: _Answer = loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether an answer is waited for."""
        return not (self._is_settled or self.answer.done())

    def settle(self, refusal: TryAgainLater | None) -> bool:
        """Answer, from whatever event loop; return False if its own is gone."""
        self._is_settled = True
        if self._loop.is_here:
            self._answer(refusal)
            return True
        return self._loop.call_soon(self._answer, refusal)

    def _answer(self, refusal: TryAgainLater | None) -> None:
        if not self.answer.done():
            self.answer.set_result(refusal)


def _open(asking: list[_Asking]) -> list[_Asking]:
    return [one for one in asking if one.is_open]


class _Place:
    """One session's place, and the one under another key that it has asked for."""

    __slots__ = ("_answer", "_digest", "_gate", "_next", "_session")

    def __init__(self, gate: ClusterSessionsPerKey, digest: str | None, session: Session) -> None:
        self._gate = gate
        self._digest = self._next = digest
        self._session = session
        self._answer: _Answer | None = None

    async def __aenter__(self) -> None:
        try:
            answer = self._gate.ask(self._digest, self._session)
            if answer is not None and (refusal := await answer) is not None:
                raise refusal
        except BaseException:
            self._gate.give_back(self._digest, self._session)  # it may be counted, and then be cancelled
            raise

    def recount(self) -> None:
        """Move to the key that the session has now as soon as the store has a place there, or refuse it and stay.

        :raises TryAgainLater: if this process refuses it by itself.
        """
        digest = self._gate.digest(self._session)
        if digest == self._next:
            return
        self._drop_next()
        if digest != self._digest:
            answer = self._gate.ask(digest, self._session)
            self._next, self._answer = digest, answer
            if answer is None:
                self._move()
            else:
                answer.add_done_callback(self._answered)

    def _answered(self, answer: _Answer) -> None:
        if answer is not self._answer or answer.cancelled():
            return
        if answer.result() is None:
            self._move()
        else:
            self._answer = None
            self._gate.refuse_late(self._session)

    def _move(self) -> None:
        before, self._digest, self._answer = self._digest, self._next, None
        self._gate.give_back(before, self._session)

    def _drop_next(self) -> None:
        self._gate.forgive(self._session)
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None
        if self._next != self._digest:
            self._gate.give_back(self._next, self._session)
            self._next = self._digest

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop_next()
        self._gate.give_back(self._digest, self._session)


async def _nothing() -> None:
    pass


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
