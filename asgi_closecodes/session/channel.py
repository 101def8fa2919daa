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
    """State of ``receive()`` once its session was ended from outside: it returns ``messages``, each once, then waits.

    :param messages: a disconnect, and what has to come before it.
    """

    __slots__ = ("_messages", "_parked", "is_delivered")

    def __init__(self, *messages: Message) -> None:
        self._messages = [*messages]
        self._parked: set[asyncio.Future[None]] = set()
        self.is_delivered = False
        """Whether a ``receive()`` has returned the disconnect."""

    def take(self) -> Message:
        """Return the next message; the disconnect is the last one, which receives that wait get each."""
        if len(self._messages) > 1:
            return self._messages.pop(0)
        self.is_delivered = True
        return self._messages[0]

    async def wait(self) -> NoReturn:
        """Wait until the task is cancelled: a disconnect that is always ready would keep the event loop."""
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
        """Cancel the tasks that wait, which nobody else would do once the handler has ended."""
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
        self._deliver: Send | None = None  # gets the handler's data, where it needs no second look
        self._interruption: Interruption | None = None
        self.sending: object = None
        """The last awaitable that ``send`` has returned, where ``send_timeout`` is set."""
        self._waiting: Any = None  # what can be cancelled where receive() waits,
        self._others: tuple[Any, ...] = ()  # and where it does in more tasks at the same time
        self.received = 0
        """Messages with data that the handler received."""
        self.sent = 0
        """Messages with data that the handler sent."""

    @abc.abstractmethod
    def _on_control_message(self, message: Message) -> None:
        """Take note of a message to the handler that is not data."""

    @abc.abstractmethod
    async def _control(self, message: Message) -> None:
        """Pass on what the handler sends besides data, or data out of season."""

    def interrupt_receive(self, interruption: Interruption) -> bool:
        """Have ``receive()`` do what ``interruption`` says; where it waits, it returns at once.

        It returns False where that could not be done now: the caller is to try once more, a little later.
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

    # No coroutine function: it returns the server's own coroutine. That is one less a message, and an
    # error of the server has the server's frame in its traceback.
    def _send_on(self, message: Message) -> Awaitable[None]:
        if message["type"] == "websocket.send" and (deliver := self._deliver) is not None:
            self.sent += 1
            return deliver(message)
        return self._control(message)

    async def _receive_on_asyncio(self) -> Message:
        """Receive at next to no cost until it is interrupted.

        What is remembered is the server's coroutine, not the task: asking for the current task takes longer than the
        whole of ``receive``. The future at the bottom of a coroutine that waits is what gets cancelled then; the
        task is not, so that no cancellation of somebody else's is ever mistaken for this one.
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
        """Receive where another task of the handler's waits for the server, too, or nothing comes of it any more."""
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
    """Whether somebody else has cancelled this task of asyncio at the same moment."""
    if not cancelled_from_outside():
        return False
    await asyncio.sleep(0)  # anyio's scopes repeat their cancellations, and know them by what they say
    return True


def _interrupted(waiting: Any) -> bool:
    """Cancel what is waited for in the end; return False if that fails for now."""
    bottom = waiting
    while (deeper := getattr(bottom, "cr_await", None) or getattr(bottom, "gi_yieldfrom", None)) is not None:
        bottom = deeper
    # What a coroutine awaits is a future's iterator, which knows its future but does not say so; granian
    # awaits an object of its own that is both.
    for candidate in (bottom, *gc.get_referents(bottom)):
        if callable(cancel := getattr(candidate, "cancel", None)):
            try:
                cancel()
            except Exception:  # an object of Rust's may be in use by another thread
                return False
            return True
    return False  # it is between two waits
