"""Gate that limits the sessions of one key, as of one user, in a whole cluster. It asks the store for every session.

Sessions that arrive during a call are all part of the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Literal, TypeAlias

from asgi_closecodes import events
from asgi_closecodes.concurrency import COUNTING, EventLoop
from asgi_closecodes.exceptions import TryAgainLater
from asgi_closecodes.gates.per_key import MaxSessionsPerKey, client_network
from asgi_closecodes.session import Session

from .base import ClusterGate
from .counts import Counts, Decisions
from .lease import FIRST_SYNC_TIMEOUT_S, RETRY_INTERVAL_S, SYNC_TIMEOUT_S, Fallback, Terms
from .lease_keeper import Health
from .redis.client import RedisStore
from .store import CountStore
from .task import ProcessTask

MAX_SUBSCRIBE_FAILURES = 3
"""Failed subscriptions in a row, while the store answers, that are reported."""

_Answer: TypeAlias = "asyncio.Future[TryAgainLater | None]"
"""Decision about a session that asks for a permit: its refusal, or None if it is admitted."""


class ClusterSessionsPerKey(ClusterGate, MaxSessionsPerKey):
    """At most ``limit`` open sessions of one key in all processes that share ``redis_url`` and ``name``.

    Each session costs a round trip. While Redis is unreachable, each process applies the limit by itself, or refuses
    all (``fallback="closed"``). Sessions admitted then are counted as soon as Redis is back.

    When the handler sets :attr:`Session.key`, it does not wait for the store. If there is no room, the session is shed
    a moment later.

    :param limit: sessions of one key; None is no limit, 0 admits nobody.
    :param redis_url: see :class:`ClusterSessions`; or a :class:`CountStore`.
    :param key: the key of a session: text, bytes, a whole number, or None for one that is not limited. By default
        :func:`client_network`. Only its hash is stored.
    :param name: tells limits on the same Redis apart. The gate's own name is ``cluster_sessions_per_key``, followed by
        ``.name`` if that is not ``default``.
    :param lease_duration: seconds after which the sessions of a dead process stop counting.
    :param fallback: ``share`` and ``open`` mean the same here.
    :param when_full: ``refuse`` the new session, or ``replace_oldest``: the new one gets the permit of the key's oldest
        in any process. That is shed within a round trip. It takes up to ``lease_duration / 3`` if Redis' message is
        lost, and longer in a process that is stopped. One new session brings a key down that is above the limit, as
        after an outage. No process holds more than twice the limit, including replaced sessions that still count.
    :raises ValueError: if a parameter cannot be used (here or when it is changed), or redis-py is not installed.
    :raises TypeError: if ``key`` cannot be called.
    """

    _own_name = "cluster_sessions_per_key"

    def __init__(  # noqa: PLR0917
        self,
        limit: int | None,
        redis_url: str | CountStore,
        key: Callable[[Session], Hashable] = client_network,
        name: str = "default",
        lease_duration: float = 30.0,
        fallback: Fallback = "share",
        when_full: Literal["refuse", "replace_oldest"] = "refuse",
    ) -> None:
        self._in_shadow = False
        self._store = RedisStore(redis_url, name) if isinstance(redis_url, str) else redis_url
        self._health = Health(name, self._forward_event)
        self._subscription = ProcessTask(self._subscribe, self._subscribe_wait, _nothing, self._forward_event)
        task = ProcessTask(self._sync, self._wait, self._leave, self._forward_event, self._store.forget)
        super().__init__(name, task, Terms(), lease_duration, fallback, limit=limit, key=key, when_full=when_full)

    def _forget(self) -> None:
        super()._forget()
        self._counts: Counts[PendingAdmission] = Counts(self._sessions)
        self._subscribe_failures = 0
        self._subscribe_failed_at = -math.inf
        self._refused: set[Session] = set()

    def _on_limit_changed(self) -> None:
        super()._on_limit_changed()
        with COUNTING:
            self._counts.mark_all_changed()
        if self._limit is None:
            self._subscription.stop_soon()

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds one of the permits of the session's key.

        :raises TypeError: if the key is neither text, bytes nor a whole number.
        """
        self._in_shadow = False
        return _Permit(self, self.digest(session), session)

    def admit_in_shadow(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return the same without replacing another session."""
        self._in_shadow = True
        return _Permit(self, self.digest(session), session)

    def adopt(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Count a session that is already open: here at once, in the cluster with the next sync."""
        permit = _Permit(self, digest := self.digest(session), session)
        self._hold(digest, session)
        if digest is not None:
            self._counts.mark_changed(digest)
        return permit

    def digest(self, session: Session) -> str | None:
        """Return the digest of the key of ``session``, which stands for it in the store."""
        return _digest(self.key(session))

    def ask(self, digest: str | None, session: Session) -> _Answer | None:
        """Admit one more session of a key here, or return a future of the store's decision.

        :raises TryAgainLater: if this process refuses it by itself.
        """
        if digest is None or self._limit is None:
            with COUNTING:
                self._hold(digest, session)
            return None
        with COUNTING:
            waiting = self._counts.waiting_for(digest)
        if self.when_full == "replace_oldest" and self._holds_twice(digest, self._limit, waiting):
            raise self._refusal(self.active_of(digest))
        self.start()
        if not self._health.is_good:
            self._admit_locally(digest, session)
            return None
        pending = PendingAdmission(session)
        with COUNTING:
            self._counts.ask_for(digest, pending)
        self._task.wake_if_due()
        return pending.answer

    def release(self, key: Hashable, session: Session) -> None:
        """Count one session of a key less, once."""
        with COUNTING:
            before = self.active
            super().release(key, session)
            is_changed = isinstance(key, str) and self._limit is not None and self.active < before
            if is_changed:
                self._counts.mark_changed(str(key))
        if is_changed:
            self._task.wake_if_due()

    def _admit_locally(self, digest: str, session: Session) -> None:
        if self.fallback == "closed":
            raise self._refusal(self.active_of(digest))
        (self.acquire_or_refuse if self._in_shadow else self.acquire)(digest, session)
        with COUNTING:
            self._counts.mark_changed(digest)

    def _decide_locally(self, all_pending: Iterable[tuple[str, PendingAdmission]]) -> None:
        for digest, pending in all_pending:
            try:
                self._admit_locally(digest, pending.session)
            except TryAgainLater as refusal:
                pending.settle(refusal)
            else:
                self._settle_admitted(digest, pending)

    def _settle_admitted(self, digest: str, pending: PendingAdmission) -> None:
        if not pending.settle(None):  # its event loop is closed
            self.release(digest, pending.session)

    # The task that syncs with the store

    def _wait(self) -> float:
        return self._counts.wait(self.lease_duration, is_reachable=self._health.is_good)

    async def _sync(self) -> None:
        replaces = self.when_full == "replace_oldest" and not self._in_shadow
        with COUNTING:
            sync = self._counts.ask(lease_duration=self.lease_duration, limit=self._limit, replaces=replaces)
        try:
            is_new = self._counts.is_first or not self._health.is_good  # there may be no connection yet
            async with asyncio.timeout(FIRST_SYNC_TIMEOUT_S if is_new else SYNC_TIMEOUT_S):
                reply = await self._store.count(sync.request)
        except BaseException as error:
            with COUNTING:
                self._decide_locally(self._counts.abandon(sync))
            if not isinstance(error, Exception):
                raise
            self._health.failed(self._store.describe_error(error), 0.0, self.fallback, in_fallback=True)
            await self._store.close()
            return
        with COUNTING:
            self._carry_out(self._counts.answer(sync, reply))
        await self._health.succeeded(self._store)

    def _carry_out(self, decisions: Decisions[PendingAdmission]) -> None:
        for all_pending, cause in ((decisions.refused, self.cause), (decisions.superseded, "replaced")):
            for pending in all_pending:
                pending.settle(self._refusal(self._limit, cause=cause))
        for digest, pending, number in decisions.admitted:
            self._hold(digest, pending.session, number)
            self._settle_admitted(digest, pending)
        for digest, session in decisions.replaced:
            self._replace(digest, session)

    async def _leave(self) -> None:
        with COUNTING:
            self._decide_locally(self._counts.take_waiting())
            request = self._counts.leave()
        try:
            async with asyncio.timeout(FIRST_SYNC_TIMEOUT_S if self._health.is_good else SYNC_TIMEOUT_S):
                await self._store.close()  # a cancelled command may have left an unread answer
                await self._store.count(request)
        except Exception as error:
            self._forward_event(events.ClusterSyncFailed(self._health.name, self._store.describe_error(error)))
        finally:
            await self._store.close()

    # The task that is notified when one of this process's sessions was replaced

    def _subscribe_wait(self) -> float:
        return max(self._subscribe_failed_at + RETRY_INTERVAL_S - time.monotonic(), 0.0)

    async def _subscribe(self) -> None:
        try:
            await self._store.listen(self._counts.worker, self._on_notified)
        except Exception as error:
            self._subscribe_failed_at = time.monotonic()
            self._subscribe_failures += self._health.is_good
            if self._subscribe_failures == MAX_SUBSCRIBE_FAILURES:
                reason = self._store.describe_error(error)
                problem = (
                    f"this process is not called when one of its sessions is replaced: {reason}. "
                    f"Such a session may leave {self.lease_duration / 3:g} s late"
                )
                self._forward_event(events.ClusterMisconfigured(self._health.name, problem))

    def _on_notified(self) -> None:
        self._subscribe_failures = 0
        self._counts.notify()
        self._task.wake_if_due()

    # What the guard asks

    def start(self) -> None:
        """Start the tasks that talk to the store.

        :raises RuntimeError: on trio.
        """
        super().start()
        if self._limit is not None and self.when_full == "replace_oldest":
            self._subscription.start()

    async def stop(self) -> None:
        """Report the ended sessions, and stop until it is started or asked again."""
        self._is_stopped = True
        await self._subscription.stop()
        await super().stop()

    def expired(self) -> Iterator[Session]:
        """Yield the sessions whose new key the store has refused."""
        yield from [session for session in self._refused.copy() if not session.is_leaving]

    def refuse_late(self, session: Session) -> None:
        """Have the ticker end an open session whose new key was refused, unless that is cancelled before."""
        self._refused.add(session)

    def cancel_late_refusal(self, session: Session) -> None:
        """Cancel the refusal of a session's new key: it has yet another key now."""
        self._refused.discard(session)

    def forked(self) -> None:
        """Reset in a child process: tasks and connections are the parent's."""
        self._task.forget()
        self._subscription.forget()
        self._store.forget()
        self._health.forget()
        self._forget()


class PendingAdmission:
    """Session that waits for the store's decision, in any event loop."""

    __slots__ = ("_is_settled", "_loop", "answer", "session")

    def __init__(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        self._loop = EventLoop(loop)
        self._is_settled = False
        self.session = session
        self.answer: _Answer = loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether it still waits for a decision."""
        return not (self._is_settled or self.answer.done())

    def settle(self, refusal: TryAgainLater | None) -> bool:
        """Set the decision, from any event loop; return False if its own is gone."""
        self._is_settled = True
        if self._loop.is_here:
            self._answer(refusal)
            return True
        return self._loop.call_soon(self._answer, refusal)

    def _answer(self, refusal: TryAgainLater | None) -> None:
        if not self.answer.done():
            self.answer.set_result(refusal)


class _Permit:
    """Permit of one session, and the one that it has asked for under another key."""

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
            self._gate.release(self._digest, self._session)  # it may have been counted, and then cancelled
            raise

    def rekey(self) -> None:
        """Ask the store for a permit under the session's new key, and move there if it is granted.

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
        self._gate.release(before, self._session)

    def _drop_next(self) -> None:
        self._gate.cancel_late_refusal(self._session)
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None
        if self._next != self._digest:
            self._gate.release(self._next, self._session)
            self._next = self._digest

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop_next()
        self._gate.release(self._digest, self._session)


async def _nothing() -> None:
    pass


def _digest(key: Hashable) -> str | None:
    """Return a digest of ``key`` for the store; it reveals neither its text nor its length."""
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
