"""Channel of the handler: a ``receive`` and a ``send`` that run once a message, and can be interrupted."""

from __future__ import annotations

import abc
import asyncio
import gc
from collections.abc import Awaitable
from typing import Any, NoReturn

import anyio
from starlette.types import Message, Receive, Send

from asgi_closecodes.concurrency import cancelled_from_outside, on_asyncio


class Interruption:
    """State of ``receive()`` after its session was ended from outside: it returns ``messages``, each once, then waits.

    :param messages: a disconnect, and the messages that have to come before it.
    """

    __slots__ = ("_messages", "_parked", "is_delivered")

    def __init__(self, *messages: Message) -> None:
        self._messages = [*messages]
        self._parked: set[asyncio.Future[None]] = set()
        self.is_delivered = False
        """Whether a ``receive()`` has returned the disconnect."""

    def take(self) -> Message:
        """Return the next message. The last one is the disconnect, which every waiting ``receive()`` gets."""
        if len(self._messages) > 1:
            return self._messages.pop(0)
        self.is_delivered = True
        return self._messages[0]

    async def wait(self) -> NoReturn:
        """Wait until the task is cancelled. A handler that loops over a disconnect would block the event loop."""
        if not on_asyncio():
            await anyio.sleep_forever()
        future = asyncio.get_running_loop().create_future()
        self._parked.add(future)
        try:
            await future
        finally:
            self._parked.discard(future)
        raise AssertionError(future)

    def release(self) -> None:
        """Cancel the tasks that wait here, since the handler has ended."""
        for future in [*self._parked]:
            future.cancel()


class Channel:
    """One handler's ``receive`` and ``send``, and what is known of them.

    :param receive: the server's.
    :param send: the server's.
    """

    __slots__ = (
        "_deliver",
        "_interruption",
        "_others",
        "_waiting",
        "received",
        "sending",
        "sent",
        "server_receive",
        "server_send",
    )

    def __init__(self, receive: Receive, send: Send) -> None:
        self.server_receive = receive
        self.server_send = send
        self._deliver: Send | None = None  # takes data that need not be checked, on an open session
        self._interruption: Interruption | None = None
        self.sending: object = None
        """Last awaitable that ``send`` returned; only with ``send_timeout``."""
        self._waiting: Any = None  # awaitable that can be cancelled while receive() waits,
        self._others: tuple[Any, ...] = ()  # and those of other tasks that receive at the same time
        self.received = 0
        """Messages with data that the handler received."""
        self.sent = 0
        """Messages with data that the handler sent."""

    @abc.abstractmethod
    def _on_control_message(self, message: Message) -> None:
        """Handle a message to the handler that is not data."""

    @abc.abstractmethod
    def _control(self, message: Message) -> Awaitable[None]:
        """Validate and forward everything except data on an open session."""

    def interrupt_receive(self, interruption: Interruption) -> bool:
        """Have ``receive()`` return the messages of ``interruption``, at once if it waits.

        Return False if that is not possible now: try again a little later.
        """
        self._interruption = interruption
        interrupted = [_interrupted(waiting) for waiting in (self._waiting, *self._others) if waiting is not None]
        return all(interrupted)

    @property
    def is_received_from(self) -> bool:
        """Whether the handler waits for the server's ``receive`` now."""
        return self._waiting is not None or bool(self._others)

    @property
    def is_interrupted(self) -> bool:
        """Whether the session was ended from outside."""
        return self._interruption is not None

    # Not a coroutine function: it returns the server's coroutine. That saves one a message, and the traceback of a
    # server's error has the server's frame.
    def _send_on(self, message: Message) -> Awaitable[None]:
        if message["type"] == "websocket.send" and (deliver := self._deliver) is not None:
            self.sent += 1
            return deliver(message)
        return self._control(message)

    async def _receive_on_asyncio(self) -> Message:
        """Receive at next to no cost until it is interrupted.

        The server's coroutine is remembered, not the task: ``current_task()`` takes longer than the whole of
        ``receive``. An interruption cancels the innermost future of that coroutine. The task itself is not cancelled,
        so a cancellation by somebody else is never mistaken for the interruption.
        """
        if self._waiting is not None or self._interruption is not None:
            return await self._receive_beside()
        receive = self.server_receive  # Python 3.11 is slow to call what a slot holds
        self._waiting = waiting = receive()
        try:
            message = await waiting
        except asyncio.CancelledError:
            if self._interruption is None or await is_cancelled_too():
                raise
            return self._interruption.take()
        finally:
            self._waiting = None
        if message["type"] == "websocket.receive":
            self.received += 1
        else:
            self._on_control_message(message)
        return message

    async def _receive_beside(self) -> Message:
        """Receive while another task of the handler also waits for the server, or after an interruption."""
        if self._interruption is not None:
            return await self._receive_interrupted(self._interruption)
        waiting = self.server_receive()
        self._others += (waiting,)
        try:
            message = await waiting
        except asyncio.CancelledError:
            if self._interruption is None or await is_cancelled_too():
                raise
            return self._interruption.take()
        finally:
            self._others = _without(waiting, self._others)
        return self._noted(message)

    async def _receive_on_trio(self) -> Message:
        if self._interruption is not None:
            return await self._receive_interrupted(self._interruption)
        message = None
        with anyio.CancelScope() as scope:
            self._others += (scope,)
            try:
                message = await self.server_receive()
            finally:
                self._others = _without(scope, self._others)
        if message is None:
            assert self._interruption is not None
            return self._interruption.take()
        return self._noted(message)

    async def _receive_interrupted(self, interruption: Interruption) -> Message:
        return await interruption.wait() if interruption.is_delivered else interruption.take()

    def _noted(self, message: Message) -> Message:
        if message["type"] == "websocket.receive":
            self.received += 1
        else:
            self._on_control_message(message)
        return message


def _without(one: object, several: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(other for other in several if other is not one)


async def is_cancelled_too() -> bool:
    """Whether somebody else has cancelled this asyncio task in the same turn of the event loop."""
    if not cancelled_from_outside():
        return False
    await asyncio.sleep(0)  # anyio's scopes repeat their cancellations, and know them by their message
    return True


def _interrupted(waiting: Any) -> bool:
    """Cancel the innermost awaitable; return False if it can't be cancelled yet."""
    bottom = waiting
    while (deeper := getattr(bottom, "cr_await", None) or getattr(bottom, "gi_yieldfrom", None)) is not None:
        bottom = deeper
    # The innermost awaitable of a coroutine is a future's iterator, which does not name its future. granian
    # awaits an object of its own that is both.
    for candidate in (bottom, *gc.get_referents(bottom)):
        if callable(cancel := getattr(candidate, "cancel", None)):
            try:
                cancel()
            except Exception:  # another thread may be using granian's object, which is Rust's
                return False
            return True
    return False  # the task is between two waits
