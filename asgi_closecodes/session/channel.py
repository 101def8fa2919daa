"""What the handler talks through: a ``receive`` and a ``send`` that run once a message, and can be cut off."""

from __future__ import annotations

import abc
import asyncio
import gc
from collections.abc import Awaitable, Iterator
from typing import Any

import anyio
from starlette.types import Message, Receive, Send

from asgi_closecodes.concurrency import cancelled_from_outside, on_asyncio


class Channel(abc.ABC):
    """One handler's ``receive`` and ``send``, and what is known of them.

    :param server_receive: the server's.
    """

    __slots__ = ("_deliver", "_farewell", "_others", "_receive", "_waiting", "received", "sent")

    def __init__(self, server_receive: Receive) -> None:
        self._receive = server_receive
        self._deliver: Send | None = None  # gets the handler's data, where it needs no second look
        self._farewell: Iterator[Message] | None = None
        self._waiting: Any = None  # what can be cancelled where receive() waits,
        self._others: tuple[Any, ...] = ()  # and where it does in more tasks at the same time
        self.received = 0
        """Messages with data that the handler received."""
        self.sent = 0
        """Messages with data that the handler sent."""

    def ends(self) -> tuple[Receive, Send]:
        """Return the ``receive`` and the ``send``; the channel does not keep them, which would be a cycle."""
        return self._receive_on_asyncio if on_asyncio() else self._receive_on_trio, self._send_on

    @abc.abstractmethod
    def _heard(self, message: Message) -> None:
        """Take note of a message to the handler that is not data."""

    @abc.abstractmethod
    async def _control(self, message: Message) -> None:
        """Pass on what the handler sends besides data, or data out of season."""

    def cut_off(self, farewell: Iterator[Message]) -> bool:
        """From now on ``receive()`` returns these messages, which do not end; where it waits, it returns at once.

        It returns False where that could not be done now: the caller is to try once more, a little later.
        """
        self._farewell = farewell
        interrupted = [_interrupted(waiting) for waiting in (self._waiting, *self._others) if waiting is not None]
        return all(interrupted)

    @property
    def is_received_from(self) -> bool:
        """Whether the handler waits for the server's ``receive`` now."""
        return self._waiting is not None or bool(self._others)

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
        if self._waiting is not None or self._farewell is not None:
            return await self._receive_beside()
        receive = self._receive  # Python 3.11 is slow to call what a slot holds
        self._waiting = waiting = receive()
        try:
            message = await waiting
        except asyncio.CancelledError:
            if self._farewell is None or await _is_cancelled_too():
                raise
            return next(self._farewell)
        finally:
            self._waiting = None
        if message["type"] == "websocket.receive":
            self.received += 1
        else:
            self._heard(message)
        return message

    async def _receive_beside(self) -> Message:
        """Receive where another task of the handler's waits for the server, too, or nothing comes of it any more."""
        if self._farewell is not None:
            return next(self._farewell)
        waiting = self._receive()
        self._others += (waiting,)
        try:
            message = await waiting
        except asyncio.CancelledError:
            if self._farewell is None or await _is_cancelled_too():
                raise
            return next(self._farewell)
        finally:
            self._others = _without(waiting, self._others)
        return self._noted(message)

    async def _receive_on_trio(self) -> Message:
        if self._farewell is not None:
            return next(self._farewell)
        message = None
        with anyio.CancelScope() as scope:
            self._others += (scope,)
            try:
                message = await self._receive()
            finally:
                self._others = _without(scope, self._others)
        if message is None:
            assert self._farewell is not None
            return next(self._farewell)
        return self._noted(message)

    def _noted(self, message: Message) -> Message:
        if message["type"] == "websocket.receive":
            self.received += 1
        else:
            self._heard(message)
        return message


def _without(one: object, several: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(other for other in several if other is not one)


async def _is_cancelled_too() -> bool:
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
