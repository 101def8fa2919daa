"""One connection: its life from the handshake to the close, and what ends it.

A session is built in layers, each a class in a file: its handler's receive and send (channel.py), the order of their
messages (protocol.py), the close of this side (close_handshake.py), and here what a session is for the guard, the gates
and its handler. However it ends, failures.py says whose fault that is, and closing.py what the session is closed with.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_closecodes import events
from asgi_closecodes.codes import Close, CloseCode
from asgi_closecodes.concurrency import Timeout, running_loop
from asgi_closecodes.error_identity import chain_of, fingerprint, new_error_id
from asgi_closecodes.exceptions import (
    CloseWith,
    EndedFromOutside,
    ExceptionMapping,
    TooManyMessages,
    TryAgainLater,
    deliberate_close,
    leaves,
    without_defaults,
)
from asgi_closecodes.naming import shown

from . import closing
from .channel import Interruption
from .close_handshake import ClosingProtocol, repeat_cancellation
from .closing import COMPLETED, ClosePlan
from .failures import Origin, is_cancelled, is_closed_by_library, origin_of
from .message_rate import metered_receive, refused
from .not_found import says_not_found
from .protocol import Ending
from .state import ARRIVED, CLOSED, DISCONNECTED, OPEN, OVER, UNANSWERED

if TYPE_CHECKING:
    from asgi_closecodes.guard import Guard

_RECEIVE_TURNS = 10
"""Turns of the event loop that an interrupted receive() may take to return."""


class Session(ClosingProtocol):
    """One WebSocket connection, from the handshake to the close.

    The running one is ``scope["extensions"]["closecodes"]``. :meth:`shed` ends it as overloaded, :meth:`fail` as if its
    handler had raised; :meth:`busy` has a drain wait. ``key``, ``priority`` and ``shed_exempt`` are for gates and
    shedding; ``expires_at`` is when it ends.
    """

    __slots__ = ("__weakref__", "_cancelling", "_error", "_handler", "priority", "shed_exempt")

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(guard, scope, receive, send)
        self._cancelling = 0  # how often the handler's task was cancelled before it began
        self._error: Exception | None = None  # what others ended it by: before its handler began, or by fail()
        self._handler: asyncio.Task[object] | Timeout | anyio.CancelScope | None = None  # what cancels it while it runs
        self.priority = 0
        """0 is the most important: sessions of higher numbers are shed first, see also ``MaxSessions(reserve=)``."""
        self.shed_exempt = False
        """Whether all other sessions are shed before this one."""

    @property
    def key(self) -> Hashable:
        """Owner of the session, such as a user's id; None until it is set.

        It is for gates as ``MaxSessionsPerKey(5, key=lambda session: session.key)``. A gate sets it for those after
        it, or the handler when it knows: best before it accepts. Setting it there has the gates count the session
        again.

        :raises TryAgainLater: if one has no room for the key, which stays what it was. Not caught by the handler,
            that closes the session with 1013.
        """
        return self._key

    @key.setter
    def key(self, key: Hashable) -> None:
        if self.permits is None or running_loop() is self._loop:
            self._set_key(key)
        elif running_loop() is None:  # a thread, as of a plain function in FastAPI
            self.loop.call(self._set_key, key)
        else:
            raise RuntimeError("session.key is set in another event loop: set it in the session's own, or in a thread")

    def _set_key(self, key: Hashable) -> None:
        before, self._key = self._key, key
        if self.permits is None or self.is_leaving:
            return  # one that ends takes nobody's place: it counts where it did until it is over
        try:
            self.permits.rekey()
        except BaseException:
            self._key = before
            self.permits.rekey()  # nothing has run meanwhile: its places are free
            raise
        if key is None:
            self._guard.deadlines.begin_auth(self)

    @property
    def expires_at(self) -> datetime | None:
        """Moment after which this session is closed with 3000, ``cause=expired``; None until it is set.

        Set it to an aware datetime, a timedelta from now or POSIX seconds, as a JWT's ``exp``; None clears it. From any
        thread. A moment in the past ends the session at the next tick of the background work.

        :raises ValueError: for NaN, a boolean, a datetime without a time zone, or a moment after the year 9999.
        :raises TypeError: for anything else.
        """
        return self._guard.deadlines.expiry_of(self)

    @expires_at.setter
    def expires_at(self, moment: datetime | timedelta | float | None) -> None:
        self._guard.deadlines.set_expiry(self, moment)

    def prepare(self) -> None:
        """Get ready for the handler, now that the session has its places.

        :raises TryAgainLater: if it was to end before it began.
        """
        try:
            self._guard.check_draining()
            if self._error is not None:
                raise self._error
        except Exception:
            self.permits = None
            raise
        # Copied, never changed in place: the server's dict may serve other middleware.
        extensions = {**(self.server_scope.get("extensions") or {}), "closecodes": self}
        self.scope = {**self.server_scope, "extensions": extensions}

    def run(self, app: ASGIApp) -> Awaitable[None]:
        """Return what is to be awaited: ``app``, which can be cancelled from elsewhere from now on."""
        self._guard.on_admitted(self)
        self._is_followed = self._guard.is_followed
        if self._is_followed:
            self.report(events.SessionAdmitted(self.facts()))
        if not isinstance(self._loop, asyncio.AbstractEventLoop):
            return self._run_in_scope(app)
        # Neither a coroutine nor a scope around it: they take 0.4 KiB for as long as the session lasts.
        self._handler = task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()
        receive: Receive = self._receive_on_asyncio
        if self._guard.message_rates.rate is not None:
            receive = metered_receive(self, receive)
        return app(self.scope, receive, self._send_on)  # not kept, which would be a cycle

    async def _run_in_scope(self, app: ASGIApp) -> None:
        with anyio.CancelScope() as self._handler:
            await app(self.scope, self._receive_on_trio, self._send_on)

    async def close_after_handler(self, error: BaseException | None = None) -> bool:
        """Close after the handler has ended; return whether nobody else has to know its ``error``."""
        if isinstance(self._handler, Timeout) and self._handler.stop(error):
            error = None  # it overstayed
        self._handler = None
        began_at = time.monotonic()
        is_over = error is None or issubclass(type(error), Exception)  # else it is cancelled, and nothing is waited for
        is_settled = True
        try:
            if error is not None:
                is_settled = await self._ended_by(error)
            elif self.phase not in OVER or self._ending is not None:
                await self._send_close(COMPLETED)
        except GeneratorExit:
            raise
        except BaseException:
            if is_over and (connection := self._held_connection()) is not None:
                connection.cancel(self._abort_deadline(connection), is_closed_here=self.phase is CLOSED)
            raise
        if (is_over or is_settled) and self._held_connection() is not None:
            await self._depart(began_at)
        if self._error is not None and is_over and self._outcome == "failed" and self._reraises:
            raise self._error
        return is_settled

    def release(self) -> None:
        """Give notice that it has ended."""
        if not self._guard.on_closed(self):
            return  # its event loop was closed under it, or it is a parent process's
        if self._is_followed:
            self.report(events.SessionClosed(self.facts(), self.closed_with, self._closed_by, self._outcome))
        # No cycles are left: the session is gone with its last reference, not with the next collection.
        self.scope = self.server_scope
        self.permits = self.sending = self._error = None
        if self._interruption is not None:
            self._interruption.release()

    def _on_closing(self) -> None:
        self._guard.on_closing(self)

    def lost(self) -> None:
        """Give notice that it has ended, and give back what it holds, since its event loop is gone."""
        places = self.permits
        if self.phase not in OVER:
            self._move(DISCONNECTED)  # nobody knows what its peer was told
        self.release()
        if places is not None:
            places.let_go()

    async def shed(self, cause: str = "shed", *, retry_after: float | None = None) -> bool:
        """End this session from outside of its handler with 1013; return whether it was still open.

        The handler sees ``websocket.disconnect`` with that code, as if its peer had left; what it sends
        from then on raises :class:`SessionEnded`, and after ``shed_grace`` seconds it is cancelled.

        :param cause: a token for the close reason and the log.
        :param retry_after: seconds after which the client should come back; by default the next place
            in the process's retry queue.
        """
        return await self.end(TryAgainLater(cause=cause, retry_after=retry_after))

    def busy(self) -> AbstractContextManager[None]:
        """Return a context manager that marks a call, a generation, a transfer: ``with session.busy(): ...``.

        A drain with ``patience`` waits for its end, and other sessions are shed first. Blocks may nest, and be in other
        tasks and threads than the handler's. In a session that is over they change nothing.
        """
        return self._guard.busy_sessions.mark(self)

    def schedule_close(self, refusal: TryAgainLater | EndedFromOutside) -> None:
        """End this session in the background, in its own event loop, from any thread."""
        if running_loop() is self._loop:
            self._guard.spawn(self.end, refusal)
        else:
            self.loop.call_soon(self._guard.spawn, self.end, refusal)

    @property
    def is_answered(self) -> bool:
        """Whether the handshake is."""
        return self.phase not in UNANSWERED

    def on_handshake_answered(self, call: Callable[[Session], None]) -> None:
        """Have ``call`` called once the handshake is answered, by whatever."""
        self._answered += (call,)

    async def end(self, refusal: TryAgainLater | EndedFromOutside) -> bool:
        """End this session as ``refusal`` says; see :meth:`shed`."""
        if not self.loop.is_here:  # what it waits for, and the server's send, are that event loop's
            return bool(await self.loop.run(self.end, refusal))
        if self.phase in OVER or self._ending is not None:
            return False
        if self.permits is None:  # it waits in a gate: its handler is not to start
            if not isinstance(refusal, TryAgainLater):
                return False  # it is over: deadlines are those of admitted sessions
            self._error = refusal
            return True
        facts = self.facts()
        plan = self._plan_for(refusal)
        self._outcome = "shed"
        try:
            await self._end(plan)
        finally:
            if isinstance(refusal, TooManyMessages):
                self.report(refused(facts, self.closed_with, refusal.limit))
            else:
                self.report(
                    events.SessionShed(
                        session=facts,
                        close=self.closed_with,
                        cause=refusal.cause or "unknown",
                        retry_after=plan.retry_after,
                        is_overload=refusal.is_overload,
                    )
                )
        return True

    async def fail(self, error: Exception) -> bool:
        """End this session as if its handler had raised ``error``; return whether that was news.

        So ``exceptions=`` counts, and what is not mapped is 1011 with a record of its ref. It is for an error that
        somebody has caught before it could end the handler: a framework, a callback, a task. What the handler sees then
        is what it sees when it is shed. It may raise the same error later, which changes nothing.

        It may be awaited in any task and event loop; a thread without one calls
        ``anyio.from_thread.run(session.fail, error)`` or ``asyncio.run(session.fail(error))``. Nothing happens when the
        handler has ended, or when it is called again.

        :raises TypeError: if ``error`` is no exception.
        """
        if not issubclass(type(error), Exception):
            raise TypeError(f"session.fail({shown(error)}): give the exception that was caught, as session.fail(error)")
        if not self.loop.is_here:
            return bool(await self.loop.run(self.fail, error))
        if self._handler is None or self._error is not None:
            return False
        self._error = error
        await self._ended_by(error)
        return True

    def _control(self, message: Message) -> Coroutine[Any, Any, None]:
        return self._control_close(message) if message["type"] == "websocket.close" else super()._control(message)

    async def _control_close(self, message: Message) -> None:
        if self._error is not None:
            await anyio.lowlevel.checkpoint()  # a framework has told of its error, and closes as always
            return
        if (error := sys.exception()) is not None:
            await self._close_as_caught(error)  # what follows is its second close then, which changes nothing
        was_open = self.phase is OPEN
        if self._guard.rules.deliver_early_closes and self.phase in UNANSWERED:
            await self._accept_early_close(message)
        await super()._control(message)
        if not was_open or self.closed_with is None or (code := self.scope.get("closecodes.error_code")) is None:
            return
        if message.get("code") == code:  # an integration has said that the framework closes with it for an error
            self.report(events.SessionClosedWithError(self.facts(), self.closed_with))

    async def _close_as_caught(self, error: BaseException) -> None:
        """Close as ``error`` or its causes ask, where a framework has caught it and is about to close."""
        if self._ending is not None or self.phase not in (OPEN, *UNANSWERED) or not is_closed_by_library(error):
            return
        mapping = without_defaults(self._guard.exceptions)  # frameworks know Starlette's own
        for one in chain_of(error):
            wish = self._deliberate_close(leaves(one), mapping)
            if wish is not None and (plan := self._plan_if_usable(wish)) is not None:
                await self._close_deliberately(wish, plan)
                return

    async def _close(self, plan: ClosePlan, *, private_use: bool = True) -> bool:
        if self._error is not None and self._handler is not None and self._ending is None:
            return await self._end(plan)
        return await self._send_close(plan, private_use=private_use)

    async def _end(self, plan: ClosePlan) -> bool:
        """Close while the handler runs: it sees a disconnect, cannot send, and is cancelled in the end."""
        ending = self._ending = Ending(plan, anyio.Event(), time.monotonic())
        self._on_closing()
        code, reason = int(plan.close.code), plan.close.reason
        disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
        # Applications take a disconnect that comes first for a bug of the server's.
        connect = ({"type": "websocket.connect"},) if self.phase is ARRIVED else ()
        interruption = Interruption(*connect, disconnect)
        try:
            self._move(self.phase)  # what the handler sends is for us now
            self._cancel_after(self._guard.rules.shed_grace)
            is_interrupted = self.interrupt_receive(interruption)
            # granian sends nothing as long as a receive() waits
            for _ in range(_RECEIVE_TURNS):
                if not self.is_received_from:
                    break
                await anyio.lowlevel.checkpoint()
                is_interrupted = is_interrupted or self.interrupt_receive(interruption)
            return await self._send_close(plan)
        finally:
            ending.is_sent.set()

    def _cancel_after(self, seconds: float) -> None:
        if isinstance(self._handler, anyio.CancelScope):
            self._handler.deadline = anyio.current_time() + seconds
        elif self._handler is not None and not isinstance(self._handler, Timeout):
            self._handler = Timeout(seconds, self._handler, self._cancelling)

    @property
    def has_departed(self) -> bool:
        """Whether the peer has left, and nobody else than the handler is to end the session."""
        return self.phase is DISCONNECTED and self._ending is None

    def cancel_soon(self) -> None:
        """Cancel the handler, which goes on though its peer has left; from any thread."""
        self.loop.call_soon(self._cancel_after, 0)

    async def _ended_by(self, error: BaseException) -> bool:
        """Close the session for what its handler raised; return whether nobody else has to know."""
        if issubclass(type(error), GeneratorExit):
            return False  # the coroutine is being thrown away: nothing may be awaited any more
        origins: set[Origin] = set()
        known: list[BaseException] = []
        causes: list[BaseException] = []
        for leaf in leaves(error):
            if (origin := self._origin_of(leaf)) is Origin.OWN:
                continue
            origins.add(origin)
            if origin is not Origin.UNKNOWN:
                known.append(leaf)
            if not self._is_told_of(leaf):
                causes.append(leaf)
        if not issubclass(type(error), Exception) and is_cancelled(error, self._cancelling):
            return await self._ended_by_cancellation(error, causes)
        if not causes:
            await self._close(COMPLETED)
            return not self._reraises
        wish = self._deliberate_close(known)
        if wish is None and self.phase in UNANSWERED and all(map(says_not_found, causes)):
            return await self._ended_by_router()
        if wish is None or (plan := self._plan_if_usable(wish)) is None:
            return await self._ended_by_failure(error, origins)
        await self._close_deliberately(wish, plan)
        return True

    async def _close_deliberately(self, wish: CloseWith, plan: ClosePlan) -> None:
        if isinstance(wish, TryAgainLater) and wish.gate is not None:
            await self.refuse(wish, plan)
        else:
            await self._close(plan)

    def _is_told_of(self, error: BaseException) -> bool:
        """Whether ``error``, which has ended the handler, was given to :meth:`fail` before, or comes of what was."""
        if self._error is None or self._handler is not None:
            return False
        known = {id(self._error), *map(id, leaves(self._error))}
        return any(id(one) in known for one in chain_of(error))

    @property
    def _reraises(self) -> bool:
        """Whether an error travels on after the close."""
        return closing.reraises(self._guard.rules, self.scope)

    async def _ended_by_cancellation(self, error: BaseException, causes: Iterable[BaseException]) -> bool:
        facts = self.facts()
        sent = False
        try:
            sent = await self.close_cancelled()
        finally:
            if any(issubclass(type(cause), Exception) for cause in causes):  # it failed while it was cancelled
                self._failed(facts, new_error_id(), error, sent=sent)
        await repeat_cancellation(error)
        return False

    async def _ended_by_router(self) -> bool:
        """Answer a handshake for which the application has no route as one over HTTP; else as ASGI refuses."""
        facts = self.facts()
        try:
            await self._close(closing.of_missing_route(self.scope))
        finally:
            self.report(events.RouteNotFound(facts))
        return True

    async def _ended_by_failure(self, error: BaseException, origins: set[Origin]) -> bool:
        rules = self._guard.rules
        reraises = self._reraises
        facts = self.facts()
        error_id = new_error_id()
        sent = departed = False
        try:
            # uvicorn raises RuntimeError, not OSError, between a lost connection and the next turn of
            # the event loop; after that turn the failing close tells it from the handler's own error.
            if maybe_departed := origins <= {Origin.UNSURE, Origin.UNKNOWN}:
                await anyio.lowlevel.checkpoint()
            is_ended = self._ending is not None  # meanwhile, by somebody else: it knows its close
            plan = closing.of_failure(error, error_id, rules, self._handshake_mode())
            # Shielded, or a cancellation would replace the error, where that travels on; and it would end fail().
            with anyio.CancelScope(shield=True) if reraises or self._handler is not None else nullcontext():
                sent = await self._close(plan, private_use=False)
            # A server that refuses 1011 refuses it of a session that is there, too.
            if departed := maybe_departed and not sent and (self.phase in OVER or Origin.UNSURE in origins):
                if not is_ended:
                    self._on_disconnect(Close(CloseCode.ABNORMAL_CLOSURE))
            elif self.phase not in OVER and self._handler is None:
                self.closed_with = Close(CloseCode.INTERNAL_ERROR)  # daphne's own, when it sees the error
        finally:
            if not departed:
                self._failed(
                    facts,
                    error_id,
                    error,
                    sent=sent,
                    of_another_session=origins <= {Origin.UNKNOWN, Origin.OTHER_SESSION},
                )
        if self.phase in OVER:
            return departed or not reraises
        return False  # the server refuses 1011: daphne sends it by itself when it sees the error

    def _failed(
        self,
        facts: events.SessionFacts,
        error_id: str,
        error: BaseException,
        *,
        sent: bool,
        of_another_session: bool = False,
    ) -> None:
        self._outcome = "failed"
        close = self.closed_with
        self.report(events.SessionFailed(facts, error_id, fingerprint(error), error, close, sent, of_another_session))

    def _origin_of(self, error: BaseException) -> Origin:
        has_left = self.phase is DISCONNECTED or self._ending is not None
        try:
            return origin_of(error, self, has_left=has_left)
        except Exception:  # frames hold whatever the application has
            return Origin.ELSEWHERE

    def _deliberate_close(
        self, causes: Iterable[BaseException], mapping: ExceptionMapping | None = None
    ) -> CloseWith | None:
        try:
            return deliberate_close(causes, self._guard.exceptions if mapping is None else mapping)
        except Exception as error:
            self.report(events.CallbackFailed("exceptions", error, self.facts()))
            return None
