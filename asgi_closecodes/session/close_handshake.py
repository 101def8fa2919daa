"""Close of this side: sent once and in time. The connection counts until the server has closed it."""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Awaitable
from typing import Any

import anyio
import anyio.lowlevel
from starlette.types import Message

from asgi_closecodes import events
from asgi_closecodes.concurrency import Timeout, limited, move_on_after, next_turn
from asgi_closecodes.exceptions import CloseWith, TryAgainLater

from . import closing, protocol
from .closing import ClosePlan
from .connection import Connection, connection_of
from .departure import Departure
from .protocol import HandlerProtocol
from .scope import offered_subprotocols
from .state import CLOSED, DENYING, OPEN, OVER, UNANSWERED

CANCELLED_CLOSE_TIMEOUT_S = 1.0
"""Seconds that the server may take to accept the close of a cancelled session."""


class ClosingProtocol(HandlerProtocol):
    """Part of a session that sends its one close, and waits for the server to close the connection."""

    __slots__ = ()

    @abc.abstractmethod
    def _close(self, plan: ClosePlan, *, private_use: bool = True) -> Awaitable[bool]:
        """Send the close, see :meth:`_send_close`. :meth:`Session.fail` also ends the handler by this."""

    async def _send_close(self, plan: ClosePlan, *, private_use: bool = True, timeout: float | None = None) -> bool:
        """End the session as ``plan`` says, unless it has ended; return whether the server took the close.

        :param private_use: whether to try the private-use code if the server refuses the code. If not, the caller
            reports that it was refused.
        :param timeout: seconds that the server may take, by default ``protocol.CLOSE_TIMEOUT_S``.
        """
        timeout = protocol.CLOSE_TIMEOUT_S if timeout is None else timeout
        foreign = False
        if self._ending is not None and plan is not self._ending.plan:
            # Another task is ending this session. Wait for it: hypercorn closes the connection when its application
            # returns, on trio even before it has sent the other task's message.
            with move_on_after(timeout):
                await self._ending.is_sent.wait()
            plan, private_use, foreign = self._ending.plan, True, True
        if self.phase in OVER:
            return False
        failure: Exception | None = None
        is_http = self.phase is DENYING or (plan.mode == "http" and self.phase in UNANSWERED)
        try:
            if not await limited(self._send_close_once(plan, private_use=private_use), self._limit_of_close, timeout):
                if is_http:
                    await next_turn()  # else uvicorn logs "returned without completing handshake"
                return self.phase is CLOSED and not foreign  # else the peer has left, before the close
            self._move(CLOSED)  # the peer does not read: send nothing more
            if timeout >= protocol.CLOSE_TIMEOUT_S and (connection := self.connection) is not None:
                connection.abort()
        except OSError:
            return False  # the peer has left
        except Exception as error:
            failure = error
        if private_use:
            self.report(events.CloseFailed(self.facts(), plan.close, failure))
        return False

    def _limit_of_close(self, timeout: float) -> anyio.CancelScope | Timeout:
        connection = self.connection if timeout >= protocol.CLOSE_TIMEOUT_S else None
        return move_on_after(timeout, None if connection is None else self._abort_deadline(connection))

    async def _send_close_once(self, plan: ClosePlan, *, private_use: bool) -> None:
        try:
            await self._send_close_in_phase(plan, private_use=private_use)
        except (Exception, GeneratorExit):
            raise
        except BaseException as error:
            # Cancelled: maybe between the accept and the close, or in the middle of a response.
            try:
                if self.phase not in OVER:
                    with anyio.move_on_after(CANCELLED_CLOSE_TIMEOUT_S, shield=True), contextlib.suppress(Exception):
                        await self._send_close_in_phase(plan, private_use=True)
            finally:  # CLOSE_TIMEOUT_S may expire meanwhile; a shield of anyio's does not stop that
                await repeat_cancellation(error)
            raise

    async def _send_close_in_phase(self, plan: ClosePlan, *, private_use: bool) -> None:
        if self.phase in UNANSWERED:
            if plan.mode == "http":
                await self._deny(plan)
            elif plan.mode == "reject":
                await self._pass_on({"type": "websocket.close"}, CLOSED)
            else:
                subprotocol = self._echoed_subprotocol()
                await self._pass_on({"type": "websocket.accept", "subprotocol": subprotocol}, OPEN)
        if self.phase is OPEN:
            message = {"type": "websocket.close", "code": int(plan.close.code), "reason": plan.close.reason}
            await self._send_close_message(message, private_use=private_use)
        elif self.phase is DENYING:
            body = bytes(self._held or b"")
            await self._pass_on({"type": "websocket.http.response.body", "body": body}, CLOSED)

    async def _deny(self, plan: ClosePlan) -> None:
        start, body = closing.denial(plan, self.scope)
        await self._pass_on(start, DENYING)
        await self._pass_on(body, CLOSED)

    def _echoed_subprotocol(self) -> str | None:
        """Return an offered subprotocol: a browser that gets none of those it offered hides the close code."""
        offered = offered_subprotocols(self.scope)
        if not offered:
            return None
        choose = self._guard.subprotocol
        if choose is not None:
            try:
                if (chosen := choose(offered)) is None or chosen in offered:
                    return chosen
                raise ValueError("subprotocol= must return an offered subprotocol or None, and returned another one")
            except Exception as error:
                self.report(events.CallbackFailed("subprotocol", error, self.facts()))
        return offered[0]

    async def _accept_early_close(self, message: Message) -> None:
        """Accept a handshake that the handler is about to close, so that a browser sees the code.

        A close without a code stays a failed handshake: so frameworks answer a path without a route.
        """
        says_nothing = closing.asked_by(message) == closing.COMPLETED.close
        if not says_nothing and self._ending is None and self._handshake_mode() == "close":
            accept = {"type": "websocket.accept", "subprotocol": self._echoed_subprotocol()}
            await self._pass_on(accept, OPEN)

    async def refuse(self, refusal: TryAgainLater, plan: ClosePlan | None = None) -> None:
        """End this session because a gate refused its handshake, or its key.

        :param plan: the close of ``refusal``, if it is known already.
        """
        facts = self.facts()
        if (plan := plan or self._plan_if_usable(refusal)) is None:
            refusal = TryAgainLater(cause="gate")
            plan = self._plan_for(refusal)
        began_at = time.monotonic()
        try:
            await self._close(plan)
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
            # Break the cycle of the error and its traceback's frames. It would keep the session until the next garbage
            # collection, and granian's socket open for as long.
            refusal.__traceback__ = refusal.__context__ = refusal.__cause__ = None
        if self.permits is None and (connection := self._held_connection()) is not None:
            self.server_receive = self.server_send = _nothing  # what the server has of a session takes much memory
            is_closed_here = self.phase is CLOSED
            self._guard.departures.refuse(connection, self, self.server_loop, began_at, is_closed_here=is_closed_here)

    async def close_cancelled(self) -> bool:
        """Close a cancelled session, within a second or not at all; return whether the server took the close."""
        plan = closing.of_cancellation(self._handshake_mode())
        with anyio.CancelScope(shield=True):
            sent = await self._send_close(plan, timeout=CANCELLED_CLOSE_TIMEOUT_S)
        if (connection := self._held_connection()) is not None:
            connection.abort_later(self._abort_deadline(connection), is_closed_here=self.phase is CLOSED)
        return sent

    async def _depart(self, connection: Connection, began_at: float) -> None:
        """Count the connection for as long as the server holds it, at most ``abandon_after``.

        :param began_at: when this side began to close, if it had not done so before.
        """
        self._guard.on_closing(self)
        if self._ending is not None:
            began_at = self._ending.began_at
        departure = self.departure(connection, began_at)
        is_gone = await self._guard.departures.wait(connection, departure, is_closed_here=self.phase is CLOSED)
        if not is_gone:
            self.report_abandoned(began_at)

    def departure(self, connection: Connection, began_at: float) -> Departure:
        """Return how long ``connection`` counts.

        :param began_at: when this side began to close, in monotonic seconds.
        """
        deadline = self._abort_deadline(connection, began_at)
        return Departure(time.monotonic(), deadline, lambda: began_at + self._guard.rules.abandon_after)

    def report_abandoned(self, began_at: float) -> None:
        """Report that its connection counts no more, though the server still holds it."""
        self.report(events.SessionAbandoned(self.facts(), self.closed_with, time.monotonic() - began_at))

    def _held_connection(self) -> Connection | None:
        """Return the connection if the server still holds it after this side or the peer has closed."""
        if self.phase not in OVER or (self.phase is CLOSED and self.closed_with is None):
            return None  # nor after an HTTP response: the server closes it
        connection = connection_of(self.server_send, self.server_receive)
        if connection is None or not connection.is_held(is_closed_here=self.phase is CLOSED):
            return None
        return connection

    def _plan_if_usable(self, wish: CloseWith) -> ClosePlan | None:
        """Return the close that ``wish`` asks for; None if that raises, as a user's class may."""
        try:
            if isinstance(wish, TryAgainLater):
                _ = wish.gate, wish.usage, wish.limit  # read later, for the event
            return self._plan_for(wish)
        except Exception:
            return None


async def _nothing(*_arguments: object) -> Any:
    """Replace the server's ``receive`` and ``send`` in a session that is over."""


async def repeat_cancellation(error: BaseException) -> None:
    """Raise the cancellation of an anyio scope again, if ``error`` is one.

    anyio knows it by its message. A timeout of asyncio that has expired in the same turn has none.
    """
    if issubclass(type(error), anyio.get_cancelled_exc_class()):
        await anyio.lowlevel.checkpoint_if_cancelled()
