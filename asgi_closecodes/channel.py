"""What the handler talks through: a ``receive`` and a ``send`` that run once a message, and can be cut off.

Closures, and few of them: bound methods of a slotted class cost half as much again (tests/benchmarks/message.py).
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
from starlette.types import Message, Receive, Send


class Channel:
    """One handler's ``receive`` and ``send``.

    :param server_receive: the server's.
    :param heard: called with each message to the handler that is not data.
    :param control: gets each message of the handler that is not data; data too, until :meth:`route` says else.
    """

    __slots__ = ("cut_off", "is_received_from", "receive", "received", "route", "send", "sent")

    receive: Receive
    send: Send
    received: Callable[[], int]
    """Messages with data that the handler received."""
    sent: Callable[[], int]
    """Messages with data that the handler sent."""
    route: Callable[[Send], None]
    """Decide who gets the handler's data."""
    cut_off: Callable[[Iterator[Message]], bool]
    """From now on ``receive()`` returns these messages, which do not end; where it waits, it returns at once.

    It returns False where that could not be done now: the caller is to try once more, a little later.
    """
    is_received_from: Callable[[], bool]
    """Whether the handler waits for the server's ``receive`` now."""

    def __init__(self, server_receive: Receive, heard: Callable[[Message], None], control: Send) -> None:
        interruptible = _receive_on_asyncio if on_asyncio() else _receive_on_trio
        self.receive, self.received, self.cut_off, self.is_received_from = interruptible(server_receive, heard)

        sent = 0
        deliver = control

        # No coroutine function: it returns the server's own coroutine. That is one less a message, and an
        # error of the server has the server's frame in its traceback.
        def send(message: Message) -> Awaitable[None]:
            nonlocal sent
            if message["type"] == "websocket.send":
                sent += 1
                return deliver(message)
            return control(message)

        def route(to: Send) -> None:
            nonlocal deliver
            deliver = to

        self.send = send
        self.sent = lambda: sent
        self.route = route


_Interruptible = tuple[Receive, Callable[[], int], Callable[[Iterator[Message]], bool], Callable[[], bool]]


def _receive_on_asyncio(server_receive: Receive, heard: Callable[[Message], None]) -> _Interruptible:
    """Return a ``receive`` that costs nothing extra until it is interrupted.

    What is remembered is the latest coroutine, not the task: asking for the current task takes longer than the
    whole of ``receive``. The future at the bottom of a coroutine that waits is what gets cancelled then; the
    task is not, so that no cancellation of somebody else's is ever mistaken for this one.
    """
    received = 0
    farewell: Iterator[Message] | None = None
    latest: Any = _Nothing()
    earlier: list[Any] = []

    async def take() -> Message:
        nonlocal received
        if farewell is not None:
            return next(farewell)
        try:
            message = await server_receive()
        except asyncio.CancelledError:
            if farewell is None or await _is_cancelled_too():
                raise
            return next(farewell)
        if message["type"] == "websocket.receive":
            received += 1
        else:
            heard(message)
        return message

    def receive() -> Awaitable[Message]:
        nonlocal latest
        if latest.cr_suspended:  # a second task receives at the same time
            earlier[:] = [*filter(_is_suspended, earlier), latest]
        latest = coroutine = take()
        return coroutine

    def cut_off(messages: Iterator[Message]) -> bool:
        nonlocal farewell
        farewell = messages
        interrupted = [_interrupted(coroutine) for coroutine in (*earlier, latest) if coroutine.cr_suspended]
        return all(interrupted)

    def is_received_from() -> bool:
        return any(map(_is_suspended, (*earlier, latest)))

    return receive, lambda: received, cut_off, is_received_from


def _receive_on_trio(server_receive: Receive, heard: Callable[[Message], None]) -> _Interruptible:
    received = 0
    farewell: Iterator[Message] | None = None
    scopes: set[anyio.CancelScope] = set()

    async def receive() -> Message:
        nonlocal received
        if farewell is not None:
            return next(farewell)
        message = None
        with anyio.CancelScope() as scope:
            scopes.add(scope)
            try:
                message = await server_receive()
            finally:
                scopes.discard(scope)
        if message is None:
            assert farewell is not None
            return next(farewell)
        if message["type"] == "websocket.receive":
            received += 1
        else:
            heard(message)
        return message

    def cut_off(messages: Iterator[Message]) -> bool:
        nonlocal farewell
        farewell = messages
        for scope in scopes:
            scope.cancel()
        return True

    return receive, lambda: received, cut_off, lambda: bool(scopes)


async def _is_cancelled_too() -> bool:
    """Whether somebody else has cancelled this task of asyncio at the same moment."""
    if not cancelled_from_outside():
        return False
    await asyncio.sleep(0)  # anyio's scopes repeat their cancellations, and know them by what they say
    return True


class _Nothing:
    """Stands for a coroutine where there is none yet."""

    cr_suspended = False


def _is_suspended(coroutine: Any) -> bool:
    return bool(coroutine.cr_suspended)


def _interrupted(coroutine: Any) -> bool:
    """Cancel what a suspended coroutine waits for in the end; return False if that fails for now."""
    bottom = coroutine
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


def on_asyncio() -> bool:
    """Whether this runs in asyncio's event loop, and not in trio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def cancelled_from_outside() -> bool:
    """Whether the current task of asyncio is cancelled; on trio a scope says so itself, again and again."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False
    return task is not None and task.cancelling() > 0
