"""Facts of asyncio and trio, time-outs, and tasks that belong to no session, gone with their event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import anyio

from asgi_closecodes.naming import name_of

_LOGGER = logging.getLogger("asgi_closecodes.error")

COUNTING = threading.RLock()
"""Held while something is counted: sessions of one guard may run in several event loops, each in its thread."""

_tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds its tasks only weakly


class EventLoop:
    """An event loop of asyncio or trio, as seen from other threads, and after it has ended or the process forked."""

    __slots__ = ("_loop", "_pid")

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._pid = os.getpid()

    @classmethod
    def running(cls) -> Self | None:
        """Return the one that runs in this thread, None if none does."""
        if (loop := running_loop()) is None:
            return None
        return cls(loop)

    @property
    def is_here(self) -> bool:
        """Whether this code runs in it."""
        return running_loop() is self._loop

    @property
    def is_alive(self) -> bool:
        """Whether it runs, in whatever thread of this process."""
        if self._pid != os.getpid():
            return False
        if isinstance(self._loop, asyncio.AbstractEventLoop):
            return self._loop.is_running()
        return self.is_here or self.call_soon(_nothing)

    def call_soon(self, call: Callable[..., object], *arguments: object) -> bool:
        """Have ``call`` called in it, from any thread; return False if it has ended."""
        try:
            if isinstance(self._loop, asyncio.AbstractEventLoop):
                self._loop.call_soon_threadsafe(call, *arguments)
            else:
                self._loop.run_sync_soon(call, *arguments)
        except RuntimeError:
            return False
        return True

    def call(self, call: Callable[..., object], *arguments: object) -> None:
        """Call ``call`` in it, from a thread without an event loop, and wait until it has returned.

        :raises RuntimeError: if it has ended.
        """
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                call(*arguments)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        if not self.call_soon(run):
            raise RuntimeError("the event loop of this session has ended")
        while not concurrent.futures.wait([done], timeout=1).done:
            if not self.is_alive:
                raise RuntimeError("the event loop of this session has ended")
        done.result()


def _nothing() -> None:
    pass


def running_loop() -> Any:
    """Return what stands for the event loop that runs in this thread: asyncio's, trio's token, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    if "trio" not in sys.modules:
        return None
    import trio  # noqa: PLC0415 - only where it may run

    try:
        return trio.lowlevel.current_trio_token()
    except RuntimeError:
        return None


def spawn(function: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Run ``function`` in a task of its own, as long as the event loop runs; what it raises is logged.

    A task, and not a task group's: where no lifespan reaches the middleware, nobody could hold one open.
    """
    if on_asyncio():
        task = asyncio.get_running_loop().create_task(logged(function, *arguments), context=contextvars.Context())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
    else:
        import trio  # noqa: PLC0415 - only where it runs

        trio.lowlevel.spawn_system_task(logged, function, *arguments)


def inside_event_loop() -> bool:
    """Whether there is an event loop to run something in."""
    try:
        anyio.get_current_task()
    except RuntimeError:
        return False
    return True


async def logged(function: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Run ``function``; what it raises is logged."""
    try:
        await function(*arguments)
    except Exception:
        name = name_of(function)
        _LOGGER.exception("background work failed: %s", name, extra={"event.name": "closecodes.background.failed"})


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


def move_on_after(seconds: float) -> anyio.CancelScope | Timeout:
    """Return a context manager that cancels what is done in it after so many seconds, and goes on behind it.

    ``cancelled_caught`` says whether it has.
    """
    return Timeout(seconds) if on_asyncio() else anyio.move_on_after(seconds)


class Timeout:
    """Cancels a task of asyncio as :func:`asyncio.timeout` does, which raises where this goes on.

    It cancels once, as asyncio does and unlike a scope of anyio's; and such a scope is no shield against it.

    :param seconds: after which it cancels.
    :param task: by default the current one, from now on.
    :param cancelling: how often another one was cancelled before it began with what is to end in time.
    """

    __slots__ = ("_cancelling", "_has_expired", "_task", "_timer", "cancelled_caught")

    def __init__(self, seconds: float, task: asyncio.Task[object] | None = None, cancelling: int = 0) -> None:
        if task is None:
            task = asyncio.current_task()
            assert task is not None
            cancelling = task.cancelling()
        self._task: asyncio.Task[object] | None = task
        self._cancelling = cancelling
        self._has_expired = False
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)
        self.cancelled_caught = False

    def _expire(self) -> None:
        assert self._task is not None
        self._has_expired = True
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self.stop(error)

    def stop(self, error: BaseException | None) -> bool:
        """Cancel nothing any more; return whether ``error``, with which the task ends, is this one's doing."""
        self._timer.cancel()
        task, self._task = self._task, None  # no cycle, where the task's own exception refers to this
        if self._has_expired:
            assert task is not None
            is_ours_alone = task.uncancel() <= self._cancelling  # nobody else has cancelled it too
            self.cancelled_caught = is_ours_alone and issubclass(type(error), asyncio.CancelledError)
        return self.cancelled_caught
