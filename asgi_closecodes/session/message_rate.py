"""Limit of the rate at which a handler receives: beyond it, the server is asked later for the next message.

So TCP's backpressure slows the peer, and a cancelled ``receive()`` loses nothing. The limiter replaces the server's
``receive``; a session without a limit has none.
"""

# ruff: noqa: SLF001 - a property would double the time spent on a message

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import anyio
from starlette.types import Message, Receive

from asgi_closecodes.bounds import MAX_NUMBER
from asgi_closecodes.codes import Close
from asgi_closecodes.concurrency import on_asyncio
from asgi_closecodes.events import SessionFacts, SessionRefused
from asgi_closecodes.exceptions import TooManyMessages

from .channel import Channel, is_cancelled_too

if TYPE_CHECKING:
    from .session import Session

CHECK_INTERVAL_S = 0.25
"""Seconds between two checks whether a delayed session is over: a server tells only who asks."""

_PAUSE_S = 0.1
"""Seconds by which messages have to be late in sum before their peer counts as having paused."""

_PROMPT_S = 0.001
"""Seconds that receiving a message takes at most that was already there, if the event loop is idle."""


class MessageRate(NamedTuple):
    """Limit of messages by GCRA, the leaky bucket as a meter."""

    per_second: float
    burst: float
    """Messages that may come together after a pause."""
    patience: float
    """Seconds that a session may be delayed without a pause."""
    is_shadow: bool = False

    @property
    def interval(self) -> float:
        """Seconds between two messages."""
        return min(1 / self.per_second, MAX_NUMBER)

    @property
    def tolerance(self) -> float:
        """Seconds by which a message may come early."""
        return (self.burst - 1) * self.interval


def limit_messages(session: Session, rate: MessageRate | None) -> None:
    """Limit the handler of ``session`` to ``rate`` from now on; from any thread."""
    receive = session.server_receive
    limited = getattr(receive, "__self__", None)
    if isinstance(limited, _Metered):
        receive = limited.server_receive
        limited.retire()
    if rate is not None:
        kind = ShadowedReceive if rate.is_shadow else LimitedReceive
        receive = kind(session, receive, rate).receive
    session.server_receive = receive


def is_early(session: Session) -> bool:
    """Whether the next message of ``session`` is delayed, if there is one."""
    limited = getattr(session.server_receive, "__self__", None)
    return isinstance(limited, LimitedReceive) and limited._clock() < limited._due_at


def refused(
    facts: SessionFacts, close: Close | None, limit: float, mode: Literal["close", "shadow"] = "close"
) -> SessionRefused:
    """Return the event of a session that has sent too many messages."""
    return SessionRefused(
        session=facts,
        close=close,
        gate=TooManyMessages.gate,
        cause=TooManyMessages.gate,
        retry_after=0.0,
        mode=mode,
        limit=limit,
        is_overload=False,
    )


class _Metered:
    """Server's ``receive`` whose messages are metered.

    :param session: held weakly, since it holds this object.
    :param clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_due_at", "_interval", "_rate", "_session", "_since", "_tolerance", "server_receive")

    def __init__(
        self,
        session: Session,
        server_receive: Receive,
        rate: MessageRate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = weakref.ref(session)
        self.server_receive = server_receive
        self._rate = rate
        self._interval, self._tolerance = rate.interval, rate.tolerance
        self._clock = clock
        self._due_at = -math.inf  # when the next message is due
        self._since: float | None = None  # when messages began to exceed the rate

    def retire(self) -> None:
        """Stop metering: the session has another ``receive`` from now on."""
        self._due_at = math.inf


class LimitedReceive(_Metered):
    """Server's ``receive`` that is called only when the next message is due."""

    __slots__ = ("_delayed_at", "_is_closing", "_is_delayed", "_late", "_ready_at", "_received_at")

    def __init__(
        self,
        session: Session,
        server_receive: Receive,
        rate: MessageRate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(session, server_receive, rate, clock)
        self._received_at = -math.inf
        self._delayed_at: float | None = None  # when the delay of the next message began,
        self._ready_at = math.inf  # and when the server was asked for it after that
        self._late = 0.0  # seconds by which messages were late, in sum
        self._is_delayed = False  # whether the next message has to be noted
        self._is_closing = False

    async def receive(self) -> Message:
        """Receive the next message once it is due."""
        if self._due_at > self._received_at:  # else it is due: the clock need not be read
            await self._wait()
        receive = self.server_receive
        message = await receive()
        if message["type"] == "websocket.receive":
            clock = self._clock
            self._received_at = now = clock()
            if self._is_delayed:
                self._note(now)
            due_at, earliest = self._due_at, now - self._tolerance
            self._due_at = (due_at if due_at > earliest else earliest) + self._interval  # noqa: FURB136 - max() is slow
        return message

    async def _wait(self) -> None:
        """Wait until a message is due; close if messages have been too many for too long."""
        now = self._clock()
        if now < self._due_at and self._delayed_at is None:
            self._delayed_at, self._ready_at, self._is_delayed = now, math.inf, True
        while now < self._due_at or self._is_closing:
            if (session := self._limited_session()) is None:
                break
            if self._close_at <= now and not self._is_closing:
                self._is_closing = True
                session.schedule_close(TooManyMessages(self._rate.per_second))
            session = None  # this coroutine must not keep it alive
            wake_at = now + CHECK_INTERVAL_S if self._is_closing else min(self._due_at, self._close_at)
            await anyio.sleep(min(wake_at - now, CHECK_INTERVAL_S))
            now = self._clock()
        self._check_interrupted()
        self._ready_at = min(self._ready_at, now)

    @property
    def _close_at(self) -> float:
        return math.inf if self._since is None else self._since + self._rate.patience

    def _limited_session(self) -> Session | None:
        """Return the session; None if it is over or has another limit by now."""
        session = self._session()
        if session is None or session.is_leaving or getattr(session.server_receive, "__self__", None) is not self:
            return None
        connection = session.connection
        return None if connection is not None and connection.is_lost else session

    def _check_interrupted(self) -> None:
        """Refuse to call the server if the session was ended in the turn in which the delay was over.

        :raises CancelledError: if it was, as an interruption does: the session's own ``receive`` expects that.
        """
        session = self._session()
        if session is not None and session.is_interrupted and on_asyncio():
            raise asyncio.CancelledError

    def _note(self, now: float) -> None:
        """Record whether the message that has come now was already waiting."""
        if self._delayed_at is None:
            late = now - self._due_at
            late = late if late > _PAUSE_S else 0.0  # less is due to the handler, or a busy event loop
        else:
            late = max(now - self._ready_at - _PROMPT_S, 0.0)
        self._late += late
        if self._late > _PAUSE_S:
            self._since, self._late = None, 0.0
        elif self._since is None:
            self._since = self._delayed_at
        self._delayed_at = None
        self._is_delayed = self._since is not None


def metered_receive(channel: Channel, receive: Receive) -> Receive:
    """Return a handler's ``receive`` for asyncio that contains the limit: 100 ns a message.

    :param receive: the channel's own, called if a message may have to wait, or the limit has changed.
    """
    limited = getattr(channel.server_receive, "__self__", None)
    if not isinstance(limited, LimitedReceive):
        return receive
    server_receive, clock = limited.server_receive, limited._clock

    async def receive_if_due() -> Message:
        if (
            channel._waiting is not None
            or channel._interruption is not None
            or limited._due_at > limited._received_at
            or limited._is_delayed
        ):
            return await receive()
        channel._waiting = waiting = server_receive()
        try:
            message = await waiting
        except asyncio.CancelledError:
            if channel._interruption is None or await is_cancelled_too():
                raise
            return channel._interruption.take()
        finally:
            channel._waiting = None
        if message["type"] == "websocket.receive":
            channel.received += 1
            limited._received_at = now = clock()
            due_at, earliest = limited._due_at, now - limited._tolerance
            limited._due_at = (due_at if due_at > earliest else earliest) + limited._interval  # noqa: FURB136 - slow
        else:
            channel._on_control_message(message)
        return message

    return receive_if_due


class ShadowedReceive(_Metered):
    """Server's ``receive`` that reports once if the limit would have closed the session."""

    __slots__ = ("_has_reported",)

    def __init__(
        self,
        session: Session,
        server_receive: Receive,
        rate: MessageRate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(session, server_receive, rate, clock)
        self._has_reported = False

    def retire(self) -> None:
        """Stop reporting."""
        self._has_reported = True

    async def receive(self) -> Message:
        """Receive the next message."""
        message = await self.server_receive()
        if message["type"] == "websocket.receive" and not self._has_reported:
            self._note(self._clock())
        return message

    def _note(self, now: float) -> None:
        if self._due_at <= now:
            self._since = None
        elif self._since is None:
            self._since = now
        self._due_at = max(self._due_at, now - self._tolerance) + self._interval
        # This message would have been delayed until now + patience at least: it is due a tolerance before that.
        if self._since is not None and self._due_at - self._interval - self._since >= self._rate.patience:
            self._has_reported = True
            if (session := self._session()) is not None:
                close = TooManyMessages(self._rate.per_second)
                facts = session.facts()
                session.report(refused(facts, Close(close.code, close.reason), self._rate.per_second, "shadow"))
