"""Messages of a handler to the server, checked and repaired according to the phase of the session."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Hashable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import anyio
import anyio.lowlevel
from starlette.types import Message, Receive, Scope, Send

from asgi_closecodes import events
from asgi_closecodes.codes import Close, CloseCode, may_be_sent, private_use_code
from asgi_closecodes.concurrency import COUNTING, EventLoop, Timeout, next_turn, running_loop
from asgi_closecodes.exceptions import CloseWith, SessionEnded, TryAgainLater
from asgi_closecodes.naming import shown

from . import closing
from .channel import Channel
from .closing import ClosePlan
from .connection import Connection, connection_of
from .facts import LateFacts
from .progress_deadline import ProgressDeadline
from .scope import can_deny, never_tells_codes
from .state import ARRIVED, CLOSED, CONNECTING, DENYING, DISCONNECTED, OPEN, OVER, TRANSITIONS, UNANSWERED, Phase

if TYPE_CHECKING:  # the guard imports this package
    from asgi_closecodes.gates.all_of import HeldPermits
    from asgi_closecodes.guard import Guard

CLOSE_TIMEOUT_S = 10.0
"""Seconds that the server may take to send a close: its ``send`` waits for a peer that does not read."""

MAX_HELD_BYTES = 1 << 20
"""Bytes of a handler's HTTP response that are collected for a server that takes only one body message."""

_SENDS_A_LOOK = 32
"""Messages between two looks at whether the connection is gone, which cost a microsecond each."""

_ABNORMAL_CLOSURE = int(CloseCode.ABNORMAL_CLOSURE)  # by itself: a look into an Enum takes a thousand instructions

_TERMINAL_MESSAGES = frozenset({"websocket.close", "websocket.http.response.start", "websocket.http.response.body"})
"""Messages that are ignored after the close: servers differ in whether they raise."""


class Ending(NamedTuple):
    """End of a session from outside while its handler runs."""

    plan: ClosePlan
    is_sent: anyio.Event
    began_at: float


class HandlerProtocol(Channel):
    """Part of a session that forwards its handler's messages, and keeps the facts of the session."""

    __slots__ = (
        "_answered",
        "_cancelling",
        "_closed_by",
        "_ending",
        "_error",
        "_guard",
        "_handler",
        "_held",
        "_id",
        "_is_followed",
        "_key",
        "_outcome",
        "arrived_at",
        "closed_with",
        "permits",
        "phase",
        "priority",
        "scope",
        "server_loop",
        "server_scope",
        "shed_exempt",
    )

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(receive, send)
        self._guard = guard
        self._answered: tuple[Callable[[Any], None], ...] = ()  # called with the session
        self._held: bytearray | None = None  # body of the HTTP response, for a server that takes it only whole
        self._key: Hashable = None
        self._handler: asyncio.Task[object] | Timeout | anyio.CancelScope | None = None  # cancels the handler
        self._cancelling = 0  # how often the handler's task was cancelled before it began
        self._error: Exception | None = None  # error given to fail(), or that ended it before its handler began
        self._ending: Ending | None = None  # set when the session is ended from outside
        self._outcome: events.Outcome = "not_accepted"
        self._closed_by: Literal["client", "handler", "middleware"] = "middleware"
        self._is_followed = False  # Guard.is_followed at its admission
        self._id = ""  # drawn on first use: most sessions never need it
        self.server_loop = running_loop()
        """Event loop in which the server has called: asyncio's, or trio's token."""
        self.server_scope = scope
        """ASGI scope that the server made."""
        self.scope = scope
        """ASGI scope that the application gets."""
        self.phase = ARRIVED
        self.arrived_at = time.monotonic()
        self.closed_with: Close | None = None
        """Close that ended the session, if it is known."""
        self.permits: HeldPermits | None = None
        """Permits of the gates, from the admission until the session is over."""
        self.priority = 0
        """0 is the most important: sessions of higher numbers are shed first, see also ``MaxSessions(reserve=)``."""
        self.shed_exempt = False
        """Whether all other sessions are shed before this one."""

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.phase.name}>"

    def facts(self) -> events.SessionFacts:
        """Return the facts of this session now, for an event."""
        facts = LateFacts(self)
        return facts.made() if self._guard.has_observers else facts

    @property
    def id(self) -> str:
        """12 hexadecimal digits, the same in every log record of this session."""
        if not self._id:
            name = os.urandom(6).hex()  # not random(): forked workers share its state
            with COUNTING:  # a thread of its handler's may ask while the event loop does
                self._id = self._id or name
        return self._id

    def report(self, event: events.Event) -> None:
        """Hand ``event`` to every observer of the guard."""
        self._guard.report(event)

    def report_once(self, key: Hashable, event: events.Event) -> None:
        """Hand only the first event of each ``key`` to the observers of the guard."""
        self._guard.report_once(key, event)

    @property
    def loop(self) -> EventLoop:
        """The event loop that it runs in."""
        return EventLoop(self.server_loop)

    @property
    def message_count(self) -> int:
        """Messages with data so far, in both directions."""
        return self.received + self.sent

    @property
    def is_leaving(self) -> bool:
        """Whether the session has ended, though its handler may still run, or was told to end."""
        return self._ending is not None or self.phase in OVER

    @property
    def connection(self) -> Connection | None:
        """Connection behind the server's ``send`` and ``receive``; None if neither leads there."""
        return connection_of(self.server_send, self.server_receive)

    def _move(self, phase: Phase) -> None:
        self.phase = phase
        if self._answered and phase not in UNANSWERED:
            for call in self._answered:
                call(self)
            self._answered = ()
        self._deliver = self._data_sender() if phase is OPEN and self._ending is None else None

    # Time limits of guard/timeouts.py

    _remembers_sends = False  # whether the handler's ``send`` remembers its awaitable

    def follow_rules_soon(self) -> None:
        """Apply changed rules to ``send`` if the session is open; from any thread."""
        self.loop.call_soon(self._follow_rules)

    def _follow_rules(self) -> None:
        if self._deliver is not None:
            self._deliver = self._data_sender()

    def _data_sender(self) -> Send:
        """Return the ``send`` for the handler's data: the server's, unless a rule has to see each message."""
        rules = self._guard.rules
        if rules.send_timeout is not None and not self._remembers_sends:
            return self._send_and_remember
        return self._send_and_notice if rules.cancel_after_disconnect else self.server_send

    def _send_and_remember(self, message: Message) -> Awaitable[None]:
        send = self._send_and_notice if self._guard.rules.cancel_after_disconnect else self.server_send
        self.sending = sending = send(message)
        return sending

    async def _send_and_notice(self, message: Message) -> None:
        """Send; record that the peer has left if the server raises because of that.

        uvicorn raises after it was told, and hypercorn never. Until then their ``send`` waits for nothing: a handler
        that does nothing else would keep the event loop, and nobody could tell it.
        """
        try:
            await self.server_send(message)
            if not self.sent % _SENDS_A_LOOK and (connection := self.connection) is not None and connection.is_lost:
                await anyio.lowlevel.checkpoint()
        except OSError:
            if self.phase is OPEN:
                self._on_disconnect(Close(CloseCode.ABNORMAL_CLOSURE))
            raise

    def _on_disconnect(self, close: Close | None) -> None:
        self.closed_with = close
        self._closed_by = "client"
        self._move(DISCONNECTED)
        self._guard.on_closing(self)

    def _on_control_message(self, message: Message) -> None:
        """Handle a message to the handler that is not data."""
        kind = message["type"]
        if kind == "websocket.disconnect":
            if self._interruption is not None:
                self._interruption.is_delivered = True
            if self.phase not in OVER:
                code = message.get("code")  # None for none, and anything that a server or middleware makes up
                close = Close(code if isinstance(code, int) else CloseCode.NO_STATUS_RCVD, message.get("reason") or "")
                is_unknown = code == _ABNORMAL_CLOSURE and never_tells_codes(self.server_scope)
                self._on_disconnect(None if is_unknown else close)
        elif kind == "websocket.connect" and self.phase is ARRIVED:
            self._move(CONNECTING)

    async def _forward(self, message: Message) -> None:
        """Validate and forward everything except data on an open session.

        :raises RuntimeError: if the phase does not allow it, as uvicorn and Starlette do.
        :raises SessionEnded: if the session was ended from outside.
        """
        if message["type"].startswith("http.response."):
            message = self._as_denial(message)
        kind = message["type"]
        phase = self.phase
        if self._ending is not None:
            # A handler that swallows the error and sends in a loop must not block the event loop. So here and below.
            await anyio.lowlevel.checkpoint()
            raise SessionEnded(f"this session was closed with {self._ending.plan.close.code}")
        if phase is DISCONNECTED:
            await anyio.lowlevel.checkpoint()
            await self.server_send(message)  # ASGI leaves it to the server whether this raises
        elif phase is CLOSED and kind in _TERMINAL_MESSAGES:
            await anyio.lowlevel.checkpoint()
            return  # ignored: servers differ in whether a second one raises
        elif kind == "websocket.http.response.start" and (phase is OPEN or not can_deny(self.scope)):
            await self._close_instead_of_denial(message)
        elif kind == "websocket.close" and phase is OPEN:
            await self._send_handlers_close(self._sendable_close(message))
        elif (following := TRANSITIONS[phase].get(kind)) is not None:
            if following is not OPEN:
                self._closed_by = "handler"
            await (self._pass_on_body(message) if phase is DENYING else self._pass_on(message, following))
            if following is OPEN:
                self._opened()
        else:
            await anyio.lowlevel.checkpoint()
            raise RuntimeError(f"the handler sent {shown(kind)} when {phase.sentence}")

    def _as_denial(self, message: Message) -> Message:
        """Return ASGI's denial message for one of a plain HTTP response, with which Sanic answers a handshake."""
        if self.phase in UNANSWERED and message.get("status") == HTTPStatus.NOT_FOUND:
            self.report(events.RouteNotFound(self.facts()))
        return {**message, "type": f"websocket.{message['type']}"}

    async def _pass_on_body(self, message: Message) -> None:
        """Forward a part of the handler's HTTP response; collect the parts for a server that takes one, as granian."""
        is_last = not message.get("more_body", False)
        if self._held is not None:
            self._held += message.get("body", b"")
            if not is_last and len(self._held) <= MAX_HELD_BYTES:
                await anyio.lowlevel.checkpoint()
                return
            message = {**message, "body": bytes(self._held)}
        try:
            await self._pass_on(message, CLOSED if is_last else DENYING)
            if is_last:
                await next_turn()  # else uvicorn logs "returned without completing handshake"
        except OSError:
            raise
        except Exception:  # granian refuses a body that is not the last
            if is_last or self._held is not None:
                raise
            self._held = bytearray(message.get("body", b""))
            await anyio.lowlevel.checkpoint()

    def _opened(self) -> None:
        if self.permits is None:
            return  # sent by a task that outlived the session
        if self._outcome == "not_accepted":
            self._outcome = "completed"
        if self._is_followed:
            self.report(events.SessionOpened(self.facts()))

    async def _close_instead_of_denial(self, message: Message) -> None:
        """Close if the handler starts an HTTP response that is not possible, or no longer.

        Starlette does so for an HTTPException after the accept. Servers turn it into 1006, or hang.
        """
        if self.phase in UNANSWERED:
            self._closed_by = "handler"
            await self._pass_on({"type": "websocket.close"}, CLOSED)
            return
        close = self._plan_for(closing.wish_of_denial(message)).close
        await self._send_handlers_close({"type": "websocket.close", "code": int(close.code), "reason": close.reason})

    def _sendable_close(self, message: Message) -> Message:
        """Return the handler's close, repaired if a server could not send it as it is."""
        asked = closing.asked_by(message)
        close = asked.sendable()
        if not may_be_sent(asked.code):
            self._report_repaired(asked, close)
        if close is asked and message.get("code") is not None:
            return message
        return {**message, "code": close.code, "reason": close.reason}

    async def _pass_on(self, message: Message, following: Phase) -> None:
        """Forward ``message`` to the server. The phase changes before, as a server's own state does."""
        phase = self.phase
        self._move(following)
        try:
            await self.server_send(message)
        except OSError:
            self._on_disconnect(Close(CloseCode.ABNORMAL_CLOSURE))
            raise
        except Exception as error:
            # uvicorn's "--ws websockets" says so when the peer left before the answer to its handshake.
            if isinstance(error, AttributeError) and error.name == "transfer_data_task":
                self._on_disconnect(Close(CloseCode.ABNORMAL_CLOSURE))
                raise ConnectionError("the peer left before its handshake was answered") from error
            if self.phase is following:  # no other task has changed the phase meanwhile
                self._move(phase)  # the server did not take the message
            raise
        if following is CLOSED:
            self._guard.on_closing(self)

    async def _send_close_message(self, message: Message, *, private_use: bool) -> None:
        self.closed_with = Close(message["code"], message.get("reason") or "")
        try:
            await self._pass_on(message, CLOSED)
        except OSError:
            raise
        except Exception:
            code = private_use_code(self.closed_with.code)
            # daphne sends 1000 and 3000 to 4999 only: its clients get 4013 instead of 1013.
            if not private_use or code == self.closed_with.code:
                self.closed_with = None
                raise
            await self._send_close_message({**message, "code": code}, private_use=False)

    async def _send_handlers_close(self, message: Message) -> None:
        """Send the handler's own close; drop a peer that reads nothing when its time is over."""
        self._closed_by = "handler"
        timer = None
        if (connection := self.connection) is not None:
            timer = connection.abort_later(self._abort_deadline(connection), is_closed_here=True)
        try:
            await self._send_close_message(message, private_use=True)
        finally:
            if timer is not None:
                timer.cancel()

    def _abort_deadline(self, connection: Connection, began_at: float | None = None) -> ProgressDeadline:
        """Return how long the connection is kept after this side began to close.

        A peer that reads gets more time only if the handler closed by itself: somebody waits for a drain.
        """
        began_at = time.monotonic() if began_at is None else began_at
        until = began_at + self._guard.rules.abandon_after if self._ending is None else began_at
        return ProgressDeadline(connection, CLOSE_TIMEOUT_S, until, began_at)

    def _plan_for(self, wish: CloseWith) -> ClosePlan:
        """Return the close that ``wish`` asks for."""
        plan = closing.of_wish(wish, self._guard.rules, self._handshake_mode, self._guard.retry_after)
        if plan.asked is not None:
            self._report_repaired(plan.asked, plan.close)
        if isinstance(wish, TryAgainLater):
            self.report_repairs(wish, plan.close)
        return plan

    def report_repairs(self, refusal: TryAgainLater, close: Close) -> None:
        """Report once for each gate or handler that its ``refusal`` could not be sent as it was."""
        if refusal.repairs:
            facts = self.facts()
            event = events.CloseRepaired(facts, ", ".join(refusal.repairs), close, refusal.gate)
            self._guard.report_once(("repairs", refusal.gate or facts.route), event)

    def _report_repaired(self, asked: Close, close: Close) -> None:
        self.report(events.CloseRepaired(self.facts(), asked.code, close))

    def _handshake_mode(self, retry_after: float | None = None) -> Literal["close", "http"]:
        """Decide how to reject a handshake without an answer.

        :param retry_after: the hint of a refusal.
        """
        return self._guard.rejection_mode(self, retry_after) if self.phase in UNANSWERED else "close"


def session_in(scope: Scope) -> HandlerProtocol | None:
    """Return the session of ``scope``, that of the innermost middleware; None if there is none."""
    session = (scope.get("extensions") or {}).get("closecodes")
    return session if isinstance(session, HandlerProtocol) else None
