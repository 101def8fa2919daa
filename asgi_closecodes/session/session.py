"""One connection: its life from the handshake to the close, and what ends it.

A session is built in layers, each a class in a file. channel.py has the handler's ``receive`` and ``send``, protocol.py
the order of messages, close_handshake.py the close of this side. This file has the rest, which the guard, the gates and
the handler use. For each end, failures.py finds whose fault it is, and closing.py the close.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from starlette.types import ASGIApp, Message, Receive

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
from .failures import (
    MAY_BE_ANOTHERS,
    MAY_BE_DEPARTURE,
    OWN,
    UNKNOWN,
    Origin,
    is_cancelled,
    is_closed_by_library,
    origin_of,
)
from .message_rate import metered_receive, refused
from .not_found import says_not_found
from .protocol import Ending
from .state import ARRIVED, CLOSED, DISCONNECTED, OPEN, OVER, UNANSWERED

if TYPE_CHECKING:
    from asgi_closecodes.gates.all_of import Permits

_RECEIVE_TURNS = 10
"""Turns of the event loop that an interrupted receive() may take to return."""


class Session(ClosingProtocol):
    """One WebSocket connection, from the handshake to the close.

    The running one is ``scope["extensions"]["closecodes"]``. :meth:`shed` ends it as overloaded, :meth:`fail` as if its
    handler had raised; :meth:`busy` has a drain wait. ``key``, ``priority`` and ``shed_exempt`` are for gates and
    shedding; ``expires_at`` is when it ends.
    """

    __slots__ = ("__weakref__",)

    @property
    def key(self) -> Hashable:
        """Owner of the session, such as a user's id; None until it is set.

        It is for gates as ``MaxSessionsPerKey(5, key=lambda session: session.key)``. A gate may set it for those
        after it. Otherwise the handler sets it as soon as it knows, best before it accepts. Then the gates count the
        session again, under its new key.

        :raises TryAgainLater: if a gate has no room for the key, which then stays as it was. If the handler does not
            catch it, it closes the session with 1013.
        """
        return self._key

    @key.setter
    def key(self, key: Hashable) -> None:
        if self.permits is None or running_loop() is self.server_loop:
            self._set_key(key)
        elif running_loop() is None:  # a thread, as of a plain function in FastAPI
            self.loop.call(self._set_key, key)
        else:
            raise RuntimeError("session.key is set in another event loop: set it in the session's own, or in a thread")

    def _set_key(self, key: Hashable) -> None:
        before, self._key = self._key, key
        if self.permits is None or self.is_leaving:
            return  # one that ends takes no permit of another key: it counts where it did until it is over
        try:
            self._guard.rekey(self)
        except BaseException:
            self._key = before
            self._guard.rekey(self)  # nothing has run meanwhile: its old permit is free
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
        """Prepare the session for its handler, once it has passed the gates.

        :raises TryAgainLater: if it was ended meanwhile.
        """
        if self._error is not None:
            raise self._error
        # Copied, never changed in place: the server's dict may serve other middleware.
        extensions = {**(self.server_scope.get("extensions") or {}), "closecodes": self}
        self.scope = {**self.server_scope, "extensions": extensions}

    def run(self, app: ASGIApp) -> Awaitable[None]:
        """Return the awaitable that runs ``app``, cancellable from elsewhere."""
        self._guard.on_admitted(self)
        self._is_followed = self._guard.is_followed()
        if self._is_followed:
            self.report(events.SessionAdmitted(self.facts()))
        if not isinstance(self.server_loop, asyncio.AbstractEventLoop):
            return self._run_in_scope(app)
        # No coroutine or scope around it: they would take 0.4 KiB for as long as the session lasts.
        self._handler = task = asyncio.current_task(self.server_loop)
        assert task is not None
        self._cancelling = task.cancelling()
        receive: Receive = self._receive_on_asyncio
        if self._guard.message_rates.rate is not None:
            receive = metered_receive(self, receive)
        return app(self.scope, receive, self._send_on)  # not stored: that would be a cycle

    async def _run_in_scope(self, app: ASGIApp) -> None:
        with anyio.CancelScope() as self._handler:
            await app(self.scope, self._receive_on_trio, self._send_on)

    async def leave(self, error: BaseException | None = None) -> bool:
        """Close and release the session after its handler has ended; return True if ``error`` was handled here."""
        if isinstance(self._handler, Timeout) and self._handler.stop(error):
            error = None  # it was cancelled after shed_grace
        self._handler = None
        began_at = time.monotonic()
        is_over = error is None or issubclass(type(error), Exception)  # else it is cancelled: wait for nothing
        is_settled = True
        try:
            if error is not None or self.phase not in OVER or self._ending is not None:
                is_settled = await self._close_after_handler(error, is_over=is_over)
            if (is_over or is_settled) and (connection := self._held_connection()) is not None:
                await self._depart(connection, began_at)
            if self._error is not None and is_over and self._outcome == "failed" and self._reraises:
                raise self._error
        except BaseException as raised:
            if (permits := self.release()) is None or not await permits.release(raised):
                raise
            return True
        if (permits := self.release()) is None:
            return is_settled
        return await permits.release(None if is_settled else error) or is_settled

    async def _close_after_handler(self, error: BaseException | None, *, is_over: bool) -> bool:
        try:
            if error is not None:
                return await self._ended_by(error)
            await self._send_close(COMPLETED)
        except GeneratorExit:
            raise
        except BaseException:
            if is_over and (connection := self._held_connection()) is not None:
                connection.cancel(self._abort_deadline(connection), is_closed_here=self.phase is CLOSED)
            raise
        return True

    def release(self) -> Permits | None:
        """Release the session from its guard: it has ended. Return its permits if a gate has to be awaited."""
        if (held := self._guard.on_closed(self)) is None:
            return None  # done before: its event loop was closed under it, or it is the parent process's
        if self._is_followed:
            self.report(events.SessionClosed(self.facts(), self.closed_with, self._closed_by, self._outcome))
        # Break all cycles: the session is freed with its last reference, not by the next garbage collection.
        self.scope = self.server_scope
        self.sending = self._error = None
        if self._interruption is not None:
            self._interruption.release()
        gates, permits = held
        return self._guard.gate.release(self, gates, permits) if permits else None

    def lost(self) -> None:
        """Release the session and its permits, since its event loop is gone."""
        if self.phase not in OVER:
            self._move(DISCONNECTED)  # whether a close was sent is unknown
        if (permits := self.release()) is not None:
            permits.let_go()

    async def shed(self, cause: str = "shed", *, retry_after: float | None = None) -> bool:
        """End this session from outside of its handler with 1013; return whether it was still open.

        The handler sees ``websocket.disconnect`` with that code, as if its peer had left. From then on its ``send``
        raises :class:`SessionEnded`. After ``shed_grace`` seconds it is cancelled.

        :param cause: a token for the close reason and the log.
        :param retry_after: seconds after which the client should come back; by default the next turn
            in the process's retry queue.
        """
        return await self.end(TryAgainLater(cause=cause, retry_after=retry_after))

    def busy(self) -> AbstractContextManager[None]:
        """Return a context manager that marks a call, a generation, a transfer: ``with session.busy(): ...``.

        A drain with ``patience`` waits for the end of the block, and other sessions are shed first. Blocks may nest, in
        any task or thread. In a session that is over they change nothing.
        """
        return self._guard.busy_sessions.mark(self)

    def schedule_close(self, refusal: TryAgainLater | EndedFromOutside) -> None:
        """End this session in the background, in its own event loop, from any thread."""
        if running_loop() is self.server_loop:
            self._guard.spawn(self.end, refusal)
        else:
            self.loop.call_soon(self._guard.spawn, self.end, refusal)

    @property
    def is_answered(self) -> bool:
        """Whether the handshake has an answer."""
        return self.phase not in UNANSWERED

    def on_handshake_answered(self, call: Callable[[Session], None]) -> None:
        """Call ``call`` with this session when its handshake is answered in any way."""
        self._answered += (call,)

    async def end(self, refusal: TryAgainLater | EndedFromOutside) -> bool:
        """End this session as ``refusal`` says; see :meth:`shed`."""
        if not self.loop.is_here:  # its futures and the server's send belong to its own event loop
            return bool(await self.loop.run(self.end, refusal))
        if self.phase in OVER or self._ending is not None:
            return False
        if self.permits is None:  # it waits in a gate: keep its handler from starting
            if not isinstance(refusal, TryAgainLater):
                return False  # it is over: only admitted sessions have deadlines
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
        """End this session as if its handler had raised ``error``; return whether it was still open.

        So ``exceptions=`` counts; an error that is not mapped is 1011 with a log record and a ref. It is for errors
        that cannot end the handler: a framework, a callback or a task has caught them. The handler sees the same as
        when it is shed. It may raise the same error later, which changes nothing.

        Await it in any task and event loop; a thread without one calls ``anyio.from_thread.run(session.fail, error)``
        or ``asyncio.run(session.fail(error))``. After the handler has ended it does nothing, nor does a second call.

        :raises TypeError: if ``error`` is no exception.
        """
        if not issubclass(type(error), Exception):
            raise TypeError(f"session.fail({shown(error)}): give the exception that was caught, as session.fail(error)")
        if not self.loop.is_here:
            return bool(await self.loop.run(self.fail, error))
        if self._handler is None or self._error is not None:
            return False
        self._error = error
        # In a task of its own: Quart cancels this one as soon as receive() says that the session ends, which no scope
        # of anyio's keeps out.
        with anyio.CancelScope(shield=True):
            await self.loop.run(self._ended_by, error)
        return True

    def _control(self, message: Message) -> Coroutine[Any, Any, None]:
        return self._control_close(message) if message["type"] == "websocket.close" else self._forward(message)

    async def _control_close(self, message: Message) -> None:
        if self._error is not None:
            await anyio.lowlevel.checkpoint()  # the framework has reported its error, and now sends its usual close
            return
        if (error := sys.exception()) is not None:
            await self._close_as_caught(error)  # the close that follows is a second one then, and is ignored
        was_open = self.phase is OPEN
        if self._guard.rules.deliver_early_closes and self.phase in UNANSWERED:
            await self._accept_early_close(message)
        await self._forward(message)
        if not was_open or self.closed_with is None or (code := self.scope.get("closecodes.error_code")) is None:
            return
        if message.get("code") == code:  # an integration has said that the framework closes with this code for errors
            self.report(events.SessionClosedWithError(self.facts(), self.closed_with))

    async def _close_as_caught(self, error: BaseException) -> None:
        """Close as ``error`` or one of its causes asks, since a framework has caught it and is about to close."""
        if self._ending is not None or self.phase not in (OPEN, *UNANSWERED) or not is_closed_by_library(error):
            return
        mapping = without_defaults(self._guard.exceptions)  # frameworks handle Starlette's exceptions themselves
        for one in chain_of(error):
            wish = self._deliberate_close(leaves(one), mapping)
            if wish is not None and (plan := self._plan_if_usable(wish)) is not None:
                await self._close_deliberately(wish, plan)
                return

    def _close(self, plan: ClosePlan, *, private_use: bool = True) -> Awaitable[bool]:
        if self._error is not None and self._handler is not None and self._ending is None:
            return self._end(plan)
        return self._send_close(plan, private_use=private_use)

    async def _end(self, plan: ClosePlan) -> bool:
        """Close while the handler runs: it sees a disconnect, cannot send, and is cancelled after ``shed_grace``."""
        ending = self._ending = Ending(plan, anyio.Event(), time.monotonic())
        self._guard.on_closing(self)
        code, reason = int(plan.close.code), plan.close.reason
        disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
        # Applications take a disconnect before the connect for a bug of the server.
        connect = ({"type": "websocket.connect"},) if self.phase is ARRIVED else ()
        interruption = Interruption(*connect, disconnect)
        try:
            self._move(self.phase)  # so that _control() sees what the handler sends
            self._cancel_after(self._guard.rules.shed_grace)
            is_interrupted = self.interrupt_receive(interruption)
            # granian sends nothing while a receive() waits
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
        """Whether the peer has left, and the session is not being ended from outside."""
        return self.phase is DISCONNECTED and self._ending is None

    def cancel_soon(self) -> None:
        """Cancel the handler, which goes on although its peer has left; from any thread."""
        self.loop.call_soon(self._cancel_after, 0)

    def cancel_if_over(self, patience: float) -> None:
        """Cancel a handler that goes on ``shed_grace`` after ``patience`` seconds from now; from any thread.

        It does nothing to one whose session is open, or was ended from outside: that one's grace runs already.
        """
        if self._ending is None:
            self.loop.call_soon(self._cancel_if_over, patience)

    def _cancel_if_over(self, patience: float) -> None:
        if self.phase in OVER and self._ending is None:
            self._cancel_after(patience + self._guard.rules.shed_grace)

    async def _ended_by(self, error: BaseException) -> bool:
        """Close the session for ``error``, which its handler raised; return True if it was handled here."""
        if issubclass(type(error), GeneratorExit):
            return False  # the coroutine is being closed: nothing may be awaited
        origins: set[Origin] = set()
        known: list[BaseException] = []
        causes: list[BaseException] = []
        for leaf in leaves(error):
            if (origin := self._origin_of(leaf)) is OWN:
                continue
            origins.add(origin)
            if origin is not UNKNOWN:
                known.append(leaf)
            if not self._was_given_to_fail(leaf):
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

    def _was_given_to_fail(self, error: BaseException) -> bool:
        """Whether ``error``, which has ended the handler, or one of its causes was given to :meth:`fail` before."""
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
            if any(issubclass(type(cause), Exception) for cause in causes):  # it failed while being cancelled
                self._failed(facts, new_error_id(), error, sent=sent)
        await repeat_cancellation(error)
        return False

    async def _ended_by_router(self) -> bool:
        """Answer a handshake without a route by HTTP 404 if the server can, else by ASGI's refusal."""
        facts = self.facts()
        try:
            await self._close(closing.of_missing_route(self.scope))
        finally:
            self.report(events.RouteNotFound(facts))
        return True

    async def _ended_by_failure(self, error: BaseException, origins: set[Origin]) -> bool:
        rules = self._guard.rules
        reraises = closing.reraises(rules, self.scope)
        facts = self.facts()
        error_id = new_error_id()
        sent = departed = False
        try:
            # Between a lost connection and the next turn of the event loop, uvicorn raises RuntimeError, not OSError.
            # After that turn the failing close tells that from the handler's own error.
            if maybe_departed := origins <= MAY_BE_DEPARTURE:
                await anyio.lowlevel.checkpoint()
            is_ended = self._ending is not None  # from outside meanwhile: that has its own close
            plan = closing.of_failure(error, error_id, rules, self._handshake_mode())
            if reraises or self._handler is not None:
                with anyio.CancelScope(shield=True):  # else one would replace an error that travels on, and end fail()
                    sent = await self._close(plan, private_use=False)
            else:
                sent = await self._close(plan, private_use=False)
            # A failed close alone does not prove that the peer has left: daphne refuses 1011 in open sessions, too.
            if departed := maybe_departed and not sent and (self.phase in OVER or Origin.UNSURE in origins):
                if not is_ended:
                    self._on_disconnect(Close(CloseCode.ABNORMAL_CLOSURE))
            elif self.phase not in OVER and self._handler is None:
                self.closed_with = Close(CloseCode.INTERNAL_ERROR)  # sent by daphne when it sees the error
        finally:
            if not departed:
                self._failed(
                    facts,
                    error_id,
                    error,
                    sent=sent,
                    of_another_session=origins <= MAY_BE_ANOTHERS,
                )
        if self.phase in OVER:
            return departed or not reraises
        return False  # daphne refuses 1011: it sends it by itself when it sees the error

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
        except Exception:  # reading frames may raise: they hold the application's objects
            return Origin.ELSEWHERE

    def _deliberate_close(
        self, causes: Iterable[BaseException], mapping: ExceptionMapping | None = None
    ) -> CloseWith | None:
        try:
            return deliberate_close(causes, self._guard.exceptions if mapping is None else mapping)
        except Exception as error:
            self.report(events.CallbackFailed("exceptions", error, self.facts()))
            return None
