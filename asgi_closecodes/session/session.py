"""One connection: its phase, what goes in and out, and its one close. The only code that talks ASGI messages.

A session moves through the phases of state.py; its :data:`MOVES` says what may be sent in each. The handler talks
through its channel (channel.py). However it ends, failures.py says whose fault that is, and closing.py what the session
is closed with. This module closes it, exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from http import HTTPStatus
from typing import Literal, NamedTuple, Protocol

import anyio
import anyio.lowlevel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_closecodes import events
from asgi_closecodes.codes import Close, CloseCode, may_be_sent, private_use_code
from asgi_closecodes.concurrency import (
    COUNTING,
    EventLoop,
    Timeout,
    move_on_after,
    on_asyncio,
    running_loop,
)
from asgi_closecodes.error_identity import fingerprint, new_error_id
from asgi_closecodes.exceptions import (
    CloseWith,
    ExceptionMapping,
    SessionEnded,
    TimedOut,
    TryAgainLater,
    deliberate_close,
    leaves,
)
from asgi_closecodes.naming import shown

from . import closing
from .channel import Channel, Interruption
from .closing import COMPLETED, ClosePlan, Rules
from .connection import Connection, connection_of
from .departure import Departure, Departures
from .failures import Origin, is_cancelled, origin_of, session_in
from .not_found import says_not_found
from .patience import Patience
from .scope import can_deny, client_of, never_tells_codes, offered_subprotocols, route_of
from .state import MOVES, OVER, UNANSWERED, Phase

CLOSE_TIMEOUT = 10.0
"""Seconds that the server may take to accept a close: its ``send`` waits for a peer that does not read."""

CANCELLED_CLOSE_TIMEOUT = 1.0
"""Seconds that a cancelled session may take for it."""

MOST_HELD = 1 << 20
"""Bytes of a handler's HTTP response that are gathered for a server that takes it in one message only."""

_TURNS = 10
"""Turns of the event loop that a cut off receive() may take to return."""

_GOODBYES = frozenset({"websocket.close", "websocket.http.response.start", "websocket.http.response.body"})
"""Sent once more after the close they change nothing; servers differ in whether they raise."""


class _Ending(NamedTuple):
    """That a session is ended from outside of its handler."""

    plan: ClosePlan
    is_said: anyio.Event
    began_at: float


class Host(Protocol):
    """What a session needs of the guard that it belongs to."""

    rules: Rules
    exceptions: ExceptionMapping
    subprotocol: Callable[[Sequence[str]], str | None] | None
    departures: Departures

    @property
    def is_followed(self) -> bool:
        """Whether anybody wants to know how a session goes where nothing is wrong with it."""

    def began(self, session: Session) -> None:
        """Take note of an admitted session."""

    def leaves(self, session: Session) -> None:
        """Take note that an admitted session has ended, or is about to, while its handler still runs."""

    def over(self, session: Session) -> bool:
        """Take note that it is over; return whether that is news."""

    def spawn(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run ``function`` in the background."""

    def report(self, event: events.Event) -> None:
        """Hand ``event`` to every observer."""

    def report_once(self, key: Hashable, event: events.Event) -> None:
        """Report the first of all events of one ``key``."""

    def retry_after(self) -> float:
        """Return the seconds after which the next refused client should come back."""

    def may_refuse_by_close(self) -> bool:
        """Whether one more refusal may hold a socket until its peer answers the close."""


class Places(Protocol):
    """What a session holds of its gates."""

    def recount(self) -> None:
        """Count the session under its new key.

        :raises TryAgainLater: if there is no room for it.
        """

    def let_go(self) -> None:
        """Give all back where nothing can be awaited."""


class Session(Channel):
    """One WebSocket connection, from the handshake to the close.

    The running one is ``scope["extensions"]["closecodes"]``.
    """

    __slots__ = (
        "__weakref__",
        "_answered",
        "_cancelling",
        "_closed_by",
        "_doom",
        "_ending",
        "_handler",
        "_held",
        "_host",
        "_id",
        "_key",
        "_loop",
        "_outcome",
        "_places",
        "_send",
        "_servers_scope",
        "arrived_at",
        "closed_with",
        "phase",
        "priority",
        "scope",
        "shed_exempt",
    )

    def __init__(self, host: Host, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(receive)
        self._host = host
        self._send = send
        self._servers_scope = scope
        self._answered: tuple[Callable[[Session], None], ...] = ()
        self._cancelling = 0  # how often the handler's task was cancelled before it began
        self._doom: TryAgainLater | None = None
        self._handler: asyncio.Task[object] | Timeout | anyio.CancelScope | None = None  # what cancels it while it runs
        self._held: bytearray | None = None  # of the handler's HTTP response, what the server does not take in parts
        self._key: Hashable = None
        self._loop = running_loop()
        self._ending: _Ending | None = None  # where somebody else than the handler ends the session
        self._outcome: events.Outcome = "not_accepted"
        self._places: Places | None = None  # from when the gates have admitted it until it is over
        self._closed_by: Literal["client", "handler", "middleware"] = "middleware"
        self._id = ""  # until somebody asks: most sessions are never told of
        self.scope = scope
        """The ASGI scope of the handshake."""
        self.phase = Phase.ARRIVED
        self.arrived_at = time.monotonic()
        self.closed_with: Close | None = None
        """The close that ended the session, as far as it is known."""
        self.priority = 0
        """0 is the most important: sessions of higher numbers are shed first, see also ``MaxSessions(reserve=)``."""
        self.shed_exempt = False
        """Whether all other sessions are shed before this one."""

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.phase.name}>"

    def facts(self) -> events.SessionFacts:
        """Return what is known of this session now, for an event."""
        return events.SessionFacts(
            id=self.id,
            route=route_of(self.scope, self._servers_scope),
            path=self.scope.get("path", ""),
            scheme=self.scope.get("scheme", "ws"),
            client=client_of(self.scope),
            phase=self.phase.public,
            duration=time.monotonic() - self.arrived_at,
            received=self.received,
            sent=self.sent,
        )

    @property
    def id(self) -> str:
        """12 hexadecimal digits, the same in every log record of this session."""
        if not self._id:
            name = os.urandom(6).hex()  # not random(): forked workers share its state
            with COUNTING:  # a thread of its handler's may ask while the event loop does
                self._id = self._id or name
        return self._id

    @property
    def key(self) -> Hashable:
        """Whose it is, such as a user's id; None until it is set.

        It is for gates as ``MaxSessionsPerKey(5, key=lambda session: session.key)``. A gate sets it for those after
        it, or the handler when it knows: best before it accepts. Setting it there has the gates count the session
        again.

        :raises TryAgainLater: if one has no room for the key, which stays what it was. Not caught by the handler,
            that closes the session with 1013.
        """
        return self._key

    @key.setter
    def key(self, key: Hashable) -> None:
        if self._places is None or running_loop() is self._loop:
            self._set_key(key)
        elif running_loop() is None:  # a thread, as of a plain function in FastAPI
            self.loop.call(self._set_key, key)
        else:
            raise RuntimeError("session.key is set in another event loop: set it in the session's own, or in a thread")

    def _set_key(self, key: Hashable) -> None:
        before, self._key = self._key, key
        if self._places is None or self.is_leaving:
            return  # one that ends takes nobody's place: it counts where it did until it is over
        try:
            self._places.recount()
        except BaseException:
            self._key = before
            self._places.recount()  # nothing has run meanwhile: its places are free
            raise

    def report(self, event: events.Event) -> None:
        """Hand ``event`` to every observer of the guard."""
        self._host.report(event)

    # How a session goes

    def prepare(self) -> None:
        """Get ready for the handler, now that the session has its places.

        :raises TryAgainLater: if it was to end before it began.
        """
        if self._doom is not None:
            self._places = None
            raise self._doom
        # Copied, never changed in place: the server's dict may serve other middleware.
        extensions = {**(self._servers_scope.get("extensions") or {}), "closecodes": self}
        self.scope = {**self._servers_scope, "extensions": extensions}

    def run(self, app: ASGIApp) -> Awaitable[None]:
        """Return what is to be awaited: ``app``, which can be cancelled from elsewhere from now on."""
        self._host.began(self)
        if self._host.is_followed:
            self.report(events.SessionAdmitted(self.facts()))
        if not on_asyncio():
            return self._run_in_scope(app)
        # Neither a coroutine nor a scope around it: they take 0.4 KiB for as long as the session lasts.
        self._handler = task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()
        return app(self.scope, *self.receive_and_send())

    async def _run_in_scope(self, app: ASGIApp) -> None:
        with anyio.CancelScope() as self._handler:
            await app(self.scope, *self.receive_and_send())

    async def finish(self, error: BaseException | None = None) -> bool:
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
            else:
                await self._say(COMPLETED)
        except GeneratorExit:
            raise
        except BaseException:
            if is_over and (connection := self._held_connection()) is not None:
                connection.cancel(self._patience(connection), is_closed_here=self.phase is Phase.CLOSED)
            raise
        if is_over or is_settled:
            await self._depart(began_at)
        return is_settled

    def over(self) -> None:
        """Give notice that it has ended."""
        if not self._host.over(self):
            return  # its event loop was closed under it, or it is a parent process's
        if self._host.is_followed:
            self.report(events.SessionClosed(self.facts(), self.closed_with, self._closed_by, self._outcome))
        # No cycles are left: the session is gone with its last reference, not with the next collection.
        self.scope = self._servers_scope
        self._places = self.sending = None
        if self._interruption is not None:
            self._interruption.release()

    def lost(self) -> None:
        """Give notice that it has ended, and give back what it holds, since its event loop is gone."""
        places = self._places
        if self.phase not in OVER:
            self._move(Phase.LEFT)  # nobody knows what its peer was told
        self.over()
        if places is not None:
            places.let_go()

    async def refuse(self, refusal: TryAgainLater, plan: ClosePlan | None = None) -> None:
        """End this session, of which a gate did not admit the handshake or the key.

        :param plan: what ``refusal`` means, where it is known.
        """
        facts = self.facts()
        if (plan := plan or self._plan_if_usable(refusal)) is None:
            refusal = TryAgainLater(cause="gate")
            plan = self._plan_for(refusal)
        began_at = time.monotonic()
        try:
            await self._say(plan)
        finally:
            self.report(
                events.SessionRefused(
                    session=facts,
                    close=self.closed_with,
                    gate=refusal.gate or "unknown",
                    cause=refusal.cause or "unknown",
                    retry_after=plan.retry_after or 0.0,
                    mode="http" if plan.mode == "http" else "close",
                    usage=refusal.usage,
                    limit=refusal.limit,
                    is_overload=refusal.is_overload,
                )
            )
            # It is settled. Frames in its traceback hold it, or the group that it came in: a cycle, which would keep
            # the session until the next garbage collection, and granian's socket open as long.
            refusal.__traceback__ = refusal.__context__ = refusal.__cause__ = None
        if self._places is None:
            await self._depart(began_at, refused=True)

    async def abandon(self) -> bool:
        """Tell the peer of a cancelled session, within a second or not at all; return whether the server took it."""
        plan = closing.of_cancellation(self._handshake_mode())
        with anyio.CancelScope(shield=True):
            sent = await self._say(plan, timeout=CANCELLED_CLOSE_TIMEOUT)
        if (connection := self._held_connection()) is not None:
            connection.abort_later(self._patience(connection), is_closed_here=self.phase is Phase.CLOSED)
        return sent

    async def shed(self, cause: str = "shed", *, retry_after: float | None = None) -> bool:
        """End this session from outside of its handler with 1013; return whether it was still open.

        The handler sees ``websocket.disconnect`` with that code, as if its peer had left; what it sends
        from then on raises :class:`SessionEnded`, and after ``shed_grace`` seconds it is cancelled.

        :param cause: a token for the close reason and the log.
        :param retry_after: seconds after which the client should come back; by default the next place
            in the process's retry queue.
        """
        return await self.end(TryAgainLater(cause=cause, retry_after=retry_after))

    def end_soon(self, refusal: TryAgainLater | TimedOut) -> None:
        """End this session in the background, in its own event loop, from any thread."""
        if running_loop() is self._loop:
            self._host.spawn(self.end, refusal)
        else:
            self.loop.call_soon(self._host.spawn, self.end, refusal)

    @property
    def loop(self) -> EventLoop:
        """The event loop that it runs in."""
        return EventLoop(self._loop)

    def when_answered(self, call: Callable[[Session], None]) -> None:
        """Have ``call`` called once the handshake is answered, by whatever."""
        self._answered += (call,)

    async def end(self, refusal: TryAgainLater | TimedOut) -> bool:
        """End this session as ``refusal`` says; see :meth:`shed`."""
        if not self.loop.is_here:  # what it waits for, and the server's send, are that event loop's
            return bool(await self.loop.run(self.end, refusal))
        if self.phase in OVER or self._ending is not None:
            return False
        if self._places is None:  # it waits in a gate: its handler is not to start
            assert isinstance(refusal, TryAgainLater), "time limits are those of admitted sessions"
            self._doom = refusal
            return True
        facts = self.facts()
        plan = self._plan_for(refusal)
        ending = self._ending = _Ending(plan, anyio.Event(), time.monotonic())
        self._outcome = "shed"
        self._host.leaves(self)
        code, reason = int(plan.close.code), plan.close.reason
        disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
        # Applications take a disconnect that comes first for a bug of the server's.
        connect = ({"type": "websocket.connect"},) if self.phase is Phase.ARRIVED else ()
        interruption = Interruption(*connect, disconnect)
        try:
            self._move(self.phase)  # what the handler sends is for us now
            self._cancel_after(self._host.rules.shed_grace)
            is_interrupted = self.interrupt_receive(interruption)
            # granian sends nothing as long as a receive() waits
            for _ in range(_TURNS):
                if not self.is_received_from:
                    break
                await anyio.lowlevel.checkpoint()
                is_interrupted = is_interrupted or self.interrupt_receive(interruption)
            await self._say(plan)
        finally:
            ending.is_said.set()
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

    def _cancel_after(self, seconds: float) -> None:
        if isinstance(self._handler, anyio.CancelScope):
            self._handler.deadline = anyio.current_time() + seconds
        elif self._handler is not None and not isinstance(self._handler, Timeout):
            self._handler = Timeout(seconds, self._handler, self._cancelling)

    @property
    def message_count(self) -> int:
        """Messages with data so far, in both directions."""
        return self.received + self.sent

    @property
    def is_leaving(self) -> bool:
        """Whether the session has ended, though its handler may still run, or was told to end."""
        return self._ending is not None or self.phase in OVER

    async def _ended_by(self, error: BaseException) -> bool:
        """Close the session for what its handler raised; return whether nobody else has to know."""
        if issubclass(type(error), GeneratorExit):
            return False  # the coroutine is being thrown away: nothing may be awaited any more
        origins = [(leaf, self._origin_of(leaf)) for leaf in leaves(error)]
        causes = [leaf for leaf, origin in origins if origin is not Origin.OWN]
        if not issubclass(type(error), Exception) and is_cancelled(error, self._cancelling):
            return await self._ended_by_cancellation(error, causes)
        if not causes:
            await self._say(COMPLETED)
            return not self._host.rules.reraise
        wish = self._deliberate_close([leaf for leaf, origin in origins if origin not in (Origin.OWN, Origin.UNKNOWN)])
        if wish is None and self.phase in UNANSWERED and all(map(says_not_found, causes)):
            return await self._ended_by_router()
        plan = self._plan_if_usable(wish)
        if wish is None or plan is None:
            return await self._ended_by_failure(error, {origin for _, origin in origins} - {Origin.OWN})
        if isinstance(wish, TryAgainLater) and wish.gate is not None:
            await self.refuse(wish, plan)
        else:
            await self._say(plan)
        return True

    async def _ended_by_cancellation(self, error: BaseException, causes: Iterable[BaseException]) -> bool:
        facts = self.facts()
        sent = False
        try:
            sent = await self.abandon()
        finally:
            if any(issubclass(type(cause), Exception) for cause in causes):  # it failed while it was cancelled
                self._failed(facts, new_error_id(), error, sent=sent)
        await _repeat(error)
        return False

    async def _ended_by_router(self) -> bool:
        """Answer a handshake for which the application has no route as one over HTTP; else as ASGI refuses."""
        facts = self.facts()
        try:
            await self._say(closing.of_missing_route(self.scope))
        finally:
            self.report(events.RouteNotFound(facts))
        return True

    async def _ended_by_failure(self, error: BaseException, origins: set[Origin]) -> bool:
        rules = self._host.rules
        facts = self.facts()
        error_id = new_error_id()
        sent = departed = False
        try:
            # uvicorn raises RuntimeError, not OSError, between a lost connection and the next turn of
            # the event loop; after that turn the failing close tells it from the handler's own error.
            if maybe_departed := origins <= {Origin.UNSURE, Origin.UNKNOWN}:
                await anyio.lowlevel.checkpoint()
            plan = closing.of_failure(error, error_id, rules, self._handshake_mode())
            # Shielded, or a cancellation would replace the error, where that travels on.
            with anyio.CancelScope(shield=True):
                sent = await self._say(plan, twin=False)
            # A server that refuses 1011 refuses it of a session that is there, too.
            if departed := maybe_departed and not sent and (self.phase in OVER or Origin.UNSURE in origins):
                self._leave(Close(CloseCode.ABNORMAL_CLOSURE))
            elif self.phase not in OVER:
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
            return departed or not rules.reraise
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
        has_left = self.phase is Phase.LEFT or self._ending is not None
        try:
            return origin_of(error, self._send, self._servers_scope, self, has_left=has_left)
        except Exception:  # frames hold whatever the application has
            return Origin.ELSEWHERE

    def _deliberate_close(self, causes: Iterable[BaseException]) -> CloseWith | None:
        try:
            return deliberate_close(causes, self._host.exceptions)
        except Exception as error:
            self.report(events.CallbackFailed("exceptions", error, self.facts()))
            return None

    def _plan_if_usable(self, wish: CloseWith | None) -> ClosePlan | None:
        """Return what ``wish`` means; None also where that raises: a class of the user's may make anything of it."""
        try:
            if isinstance(wish, TryAgainLater):
                _ = wish.gate, wish.usage, wish.limit  # read later, for the event
            return None if wish is None else self._plan_for(wish)
        except Exception:
            return None

    def _plan_for(self, wish: CloseWith) -> ClosePlan:
        """Return what ``wish`` means."""
        plan = closing.of_wish(wish, self._host.rules, self._handshake_mode(), self._host.retry_after)
        if plan.asked is not None:
            self._report_repaired(plan.asked, plan.close)
        if isinstance(wish, TryAgainLater):
            self.report_repairs(wish, plan.close)
        return plan

    def report_repairs(self, refusal: TryAgainLater, close: Close) -> None:
        """Report what of ``refusal`` could not be sent, once for its gate or its handler."""
        if refusal.repairs:
            facts = self.facts()
            event = events.CloseRepaired(facts, ", ".join(refusal.repairs), close, refusal.gate)
            self._host.report_once(("repairs", refusal.gate or facts.route), event)

    def _report_repaired(self, asked: Close, close: Close) -> None:
        self.report(events.CloseRepaired(self.facts(), asked.code, close))

    # The connection after that

    async def _depart(self, began_at: float, *, refused: bool = False) -> None:
        """Wait while the server holds the connection, so that it counts; no longer than ``abandon_after``.

        :param began_at: when this side began to close, if it had not done so before.
        """
        if (connection := self._held_connection()) is None:
            return
        self._host.leaves(self)
        if self._ending is not None:
            began_at = self._ending.began_at
        departure = Departure(
            time.monotonic(),
            self._patience(connection, began_at),
            lambda: began_at + self._host.rules.abandon_after,
            is_refused=refused,
        )
        is_gone = await self._host.departures.wait(connection, departure, is_closed_here=self.phase is Phase.CLOSED)
        if not is_gone:
            self.report(events.SessionAbandoned(self.facts(), self.closed_with, time.monotonic() - began_at))

    def _held_connection(self) -> Connection | None:
        """Return the connection if the server holds it, though this side or the peer has closed."""
        if self.phase not in OVER or (self.phase is Phase.CLOSED and self.closed_with is None):
            return None  # nor is it ours to look after where an HTTP response has answered
        connection = self.connection
        if connection is None or not connection.is_held(is_closed_here=self.phase is Phase.CLOSED):
            return None
        return connection

    def _patience(self, connection: Connection, began_at: float | None = None) -> Patience:
        """Return how long the connection is kept from when this side began to close.

        Only what a handler has ended by itself lasts longer for a peer that reads: a drain is waited for.
        """
        began_at = time.monotonic() if began_at is None else began_at
        until = began_at + self._host.rules.abandon_after if self._ending is None else began_at
        return Patience(connection, CLOSE_TIMEOUT, until, began_at)

    # The close

    async def _say(self, plan: ClosePlan, *, twin: bool = True, timeout: float | None = None) -> bool:
        """End the session as ``plan`` says unless it has ended; return whether the server took it.

        :param twin: whether the private twin of a code may stand for one that the server refuses; if not,
            that it was refused is for the caller to report.
        :param timeout: seconds that the server may take, by default ``CLOSE_TIMEOUT``.
        """
        timeout = CLOSE_TIMEOUT if timeout is None else timeout
        foreign = False
        if self._ending is not None and plan is not self._ending.plan:
            # Somebody else ends this session. It is waited for: hypercorn closes the connection when its application
            # returns, on trio before it has sent what another task is sending.
            with move_on_after(timeout):
                await self._ending.is_said.wait()
            plan, twin, foreign = self._ending.plan, True, True
        if self.phase in OVER:
            return False
        failure: Exception | None = None
        connection = self.connection if timeout >= CLOSE_TIMEOUT else None
        with move_on_after(timeout, None if connection is None else self._patience(connection)) as limit:
            try:
                await self._end_uninterrupted(plan, twin=twin)
            except OSError:
                return False  # the peer has left
            except Exception as error:
                failure = error
        if limit.cancelled_caught:
            self._move(Phase.CLOSED)  # nothing more will be said to a peer that does not read
            if connection is not None:
                connection.abort()
        elif failure is None:
            return self.phase is Phase.CLOSED and not foreign  # or the peer left before it was asked to
        if twin:
            self.report(events.CloseFailed(self.facts(), plan.close, failure))
        return False

    async def _end_uninterrupted(self, plan: ClosePlan, *, twin: bool) -> None:
        try:
            await self._end(plan, twin=twin)
        except (Exception, GeneratorExit):
            raise
        except BaseException as error:
            # Cancelled, maybe between the accept and the close, or in the middle of a response.
            try:
                if self.phase not in OVER:
                    with anyio.move_on_after(CANCELLED_CLOSE_TIMEOUT, shield=True), contextlib.suppress(Exception):
                        await self._end(plan, twin=True)
            finally:  # CLOSE_TIMEOUT may expire meanwhile, which no scope of anyio's keeps out
                await _repeat(error)
            raise

    async def _end(self, plan: ClosePlan, *, twin: bool) -> None:
        if self.phase in UNANSWERED:
            if plan.mode == "http":
                await self._deny(plan)
            elif plan.mode == "reject":
                await self._pass_on({"type": "websocket.close"}, Phase.CLOSED)
            else:
                subprotocol = self._echoed_subprotocol()
                await self._pass_on({"type": "websocket.accept", "subprotocol": subprotocol}, Phase.OPEN)
        if self.phase is Phase.OPEN:
            message = {"type": "websocket.close", "code": int(plan.close.code), "reason": plan.close.reason}
            await self._send_close(message, twin=twin)
        elif self.phase is Phase.DENYING:
            body = bytes(self._held or b"")
            await self._pass_on({"type": "websocket.http.response.body", "body": body}, Phase.CLOSED)

    async def _deny(self, plan: ClosePlan) -> None:
        start, body = closing.denial(plan, self.scope)
        await self._pass_on(start, Phase.DENYING)
        await self._pass_on(body, Phase.CLOSED)

    async def _send_close(self, message: Message, *, twin: bool) -> None:
        self.closed_with = Close(message.get("code", CloseCode.NORMAL_CLOSURE), message.get("reason") or "")
        try:
            await self._pass_on(message, Phase.CLOSED)
        except OSError:
            raise
        except Exception:
            code = private_use_code(self.closed_with.code)
            if not twin or code == self.closed_with.code:
                self.closed_with = None
                raise
            await self._send_close({**message, "code": code}, twin=False)

    async def _pass_on(self, message: Message, following: Phase) -> None:
        """Hand ``message`` to the server; the phase moves first, as servers' own state does."""
        phase = self.phase
        self._move(following)
        try:
            await self._send(message)
        except OSError:
            self._leave(Close(CloseCode.ABNORMAL_CLOSURE))
            raise
        except Exception as error:
            # So uvicorn's "--ws websockets" says that the peer left before its handshake was answered.
            if isinstance(error, AttributeError) and error.name == "transfer_data_task":
                self._leave(Close(CloseCode.ABNORMAL_CLOSURE))
                raise ConnectionError("the peer left before its handshake was answered") from error
            if self.phase is following:  # and nobody else has moved on meanwhile
                self._move(phase)  # not taken
            raise
        if following is Phase.CLOSED:
            self._host.leaves(self)
        if phase is Phase.DENYING and following is Phase.CLOSED:
            await anyio.lowlevel.checkpoint()  # else uvicorn logs "returned without completing handshake"

    def _handshake_mode(self) -> Literal["close", "http"]:
        """Decide how a handshake that is not answered yet is refused."""
        if self.phase not in UNANSWERED:
            return "close"
        return closing.handshake_mode(self._host.rules, self.scope, self._host.may_refuse_by_close)

    def _echoed_subprotocol(self) -> str | None:
        """Return an offered subprotocol: without one a browser that offered some hides the close code."""
        offered = offered_subprotocols(self.scope)
        if not offered:
            return None
        choose = self._host.subprotocol
        if choose is not None:
            try:
                if (chosen := choose(offered)) is None or chosen in offered:
                    return chosen
                raise ValueError("subprotocol= chose what the client did not offer")
            except Exception as error:
                self.report(events.CallbackFailed("subprotocol", error, self.facts()))
        return offered[0]

    # What comes and goes

    def _move(self, phase: Phase) -> None:
        self.phase = phase
        if self._answered and phase not in UNANSWERED:
            for call in self._answered:
                call(self)
            self._answered = ()
        self._deliver = self._data_sender() if phase is Phase.OPEN and self._ending is None else None

    # Time limits of guard/timeouts.py

    _remembers_sends = False  # whether the handler's own ``send`` does

    @property
    def connection(self) -> Connection | None:
        """The connection that the server sends to, where its ``send`` leads there."""
        return connection_of(self._send)

    @property
    def has_departed(self) -> bool:
        """Whether the peer has left, and nobody else than the handler is to end the session."""
        return self.phase is Phase.LEFT and self._ending is None

    def cancel_soon(self) -> None:
        """Cancel the handler, which goes on though its peer has left; from any thread."""
        self.loop.call_soon(self._cancel_after, 0)

    def follow_rules_soon(self) -> None:
        """Send as changed rules say, where the session is open already; from any thread."""
        self.loop.call_soon(self._follow_rules)

    def _follow_rules(self) -> None:
        if self._deliver is not None:
            self._deliver = self._data_sender()

    def _data_sender(self) -> Send:
        """Return what gets the handler's data: the server's ``send``, unless a rule needs to know of each message."""
        rules = self._host.rules
        if rules.send_timeout is not None and not self._remembers_sends:
            return self._send_and_remember
        return self._send_and_notice if rules.cancel_after_disconnect else self._send

    def _send_and_remember(self, message: Message) -> Awaitable[None]:
        send = self._send_and_notice if self._host.rules.cancel_after_disconnect else self._send
        self.sending = sending = send(message)
        return sending

    async def _send_and_notice(self, message: Message) -> None:
        """Send; where the server raises since the peer has left, take note of that."""
        try:
            await self._send(message)
        except OSError:
            if self.phase is Phase.OPEN:
                self._leave(Close(CloseCode.ABNORMAL_CLOSURE))
            raise

    def _leave(self, close: Close | None) -> None:
        self.closed_with = close
        self._closed_by = "client"
        self._move(Phase.LEFT)
        self._host.leaves(self)

    def _on_control_message(self, message: Message) -> None:
        """Take note of a message to the handler that is not data."""
        if message["type"] == "websocket.disconnect" and self._interruption is not None:
            self._interruption.is_told = True
        if message["type"] == "websocket.connect" and self.phase is Phase.ARRIVED:
            self._move(Phase.CONNECTING)
        elif message["type"] == "websocket.disconnect" and self.phase not in OVER:
            code = message.get("code")  # None where there was none; and whatever a server or middleware makes up
            reason = message.get("reason") or ""
            close = Close(code if isinstance(code, int) else CloseCode.NO_STATUS_RCVD, reason)
            self._leave(
                None if code == CloseCode.ABNORMAL_CLOSURE and never_tells_codes(self._servers_scope) else close
            )

    async def _control(self, message: Message) -> None:
        """Pass on what the handler sends besides data, or data out of season.

        :raises RuntimeError: if the phase does not allow it, as uvicorn and Starlette do.
        :raises SessionEnded: if the session was ended from outside.
        """
        if message["type"].startswith("http.response."):
            message = self._as_denial(message)
        kind = message["type"]
        phase = self.phase
        if self._ending is not None:
            await anyio.lowlevel.checkpoint()  # a handler that swallows this and goes on keeps nobody from running
            raise SessionEnded(f"this session was closed with {self._ending.plan.close.code}")
        if phase is Phase.LEFT:
            await anyio.lowlevel.checkpoint()
            await self._send(message)  # ASGI leaves it to the server whether this raises
        elif phase is Phase.CLOSED and kind in _GOODBYES:
            await anyio.lowlevel.checkpoint()
            return  # servers differ in whether a second goodbye raises; it harms nobody
        elif kind == "websocket.http.response.start" and (phase is Phase.OPEN or not can_deny(self.scope)):
            await self._deny_by_close(message)
        elif kind == "websocket.close" and phase is Phase.OPEN:
            await self._send_handlers_close(self._legal(message))
        elif (following := MOVES[phase].get(kind)) is not None:
            if following is not Phase.OPEN:
                self._closed_by = "handler"
            await (self._pass_on_body(message) if phase is Phase.DENYING else self._pass_on(message, following))
            if following is Phase.OPEN:
                self._opened()
        else:
            await anyio.lowlevel.checkpoint()
            raise RuntimeError(f"the handler sent {shown(kind)} when {phase.sentence}")

    def _as_denial(self, message: Message) -> Message:
        """Return a message of a plain HTTP response, as Sanic answers a handshake, as ASGI wants it here."""
        if self.phase in UNANSWERED and message.get("status") == HTTPStatus.NOT_FOUND:
            self.report(events.RouteNotFound(self.facts()))
        return {**message, "type": f"websocket.{message['type']}"}

    async def _pass_on_body(self, message: Message) -> None:
        """Pass on a part of the handler's HTTP response; all in one to a server that takes no parts, as granian."""
        is_last = not message.get("more_body", False)
        if self._held is not None:
            self._held += message.get("body", b"")
            if not is_last and len(self._held) <= MOST_HELD:
                await anyio.lowlevel.checkpoint()
                return
            message = {**message, "body": bytes(self._held)}
        try:
            await self._pass_on(message, Phase.CLOSED if is_last else Phase.DENYING)
        except OSError:
            raise
        except Exception:
            if is_last or self._held is not None:
                raise
            self._held = bytearray(message.get("body", b""))
            await anyio.lowlevel.checkpoint()

    def _opened(self) -> None:
        if self._places is None:
            return  # a task of the handler's that outlived the session
        if self._outcome == "not_accepted":
            self._outcome = "completed"
        if self._host.is_followed:
            self.report(events.SessionOpened(self.facts()))

    async def _deny_by_close(self, message: Message) -> None:
        """Close where the handler starts an HTTP response that cannot be given (any more).

        Starlette does so for an HTTPException after accept; servers turn it into 1006, or hang.
        """
        if self.phase in UNANSWERED:
            self._closed_by = "handler"
            await self._pass_on({"type": "websocket.close"}, Phase.CLOSED)
            return
        close = self._plan_for(closing.wish_of_denial(message)).close
        await self._send_handlers_close({"type": "websocket.close", "code": close.code, "reason": close.reason})

    async def _send_handlers_close(self, message: Message) -> None:
        """Send the handler's own close; a peer that reads nothing is dropped when it has had its time for it."""
        self._closed_by = "handler"
        timer = None
        if (connection := self.connection) is not None:
            timer = connection.abort_later(self._patience(connection), is_closed_here=True)
        try:
            await self._send_close(message, twin=True)
        finally:
            if timer is not None:
                timer.cancel()

    def _legal(self, message: Message) -> Message:
        """Return the handler's close, repaired if a server could not send it as it is."""
        asked = closing.asked_by(message)
        close = asked.sendable()
        if not may_be_sent(asked.code):
            self._report_repaired(asked, close)
        if close == asked and message.get("code") is not None:
            return message
        return {**message, "code": close.code, "reason": close.reason}


def session_of(scope: Scope) -> Session | None:
    """Return the session that runs with ``scope``, that of the innermost middleware."""
    session = session_in(scope)
    return session if isinstance(session, Session) else None


async def _repeat(error: BaseException) -> None:
    """Raise once more the cancellation of a scope of anyio's, where ``error`` is one.

    It is known by what it says, and a timeout of asyncio's that has expired in the same turn says nothing.
    """
    if issubclass(type(error), anyio.get_cancelled_exc_class()):
        await anyio.lowlevel.checkpoint_if_cancelled()
