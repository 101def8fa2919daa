"""Helpers for asyncio and trio: several event loops and threads, time-outs, and background tasks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import os
import sys
import threading
import time
import types
from collections.abc import Awaitable, Callable, Container, Coroutine, Generator
from types import FrameType, TracebackType
from typing import Any, Protocol, Self, TypeVar

import anyio
import anyio.lowlevel

COUNTING = threading.RLock()
"""Lock for all counts: sessions of one guard may run in several event loops, each in its thread.

It is reentrant: the garbage collector may end a session of a closed event loop at any moment. There is only one, so
that a fork can make sure that it is free.
"""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=COUNTING.acquire, after_in_parent=COUNTING.release, after_in_child=COUNTING.release)

_LOST_AFTER_S = 0.5
"""Seconds between two checks whether an event loop still runs while a thread waits for it."""

_Returned = TypeVar("_Returned")

_tasks: set[asyncio.Task[object]] = set()  # asyncio holds its tasks only weakly


class EventLoop:
    """Event loop of asyncio or trio, for use from other threads, after its end and after a fork."""

    __slots__ = ("_loop", "_pid")

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._pid = os.getpid()

    @classmethod
    def running(cls) -> Self | None:
        """Return the event loop that runs in this thread; None if there is none."""
        if (loop := running_loop()) is None:
            return None
        return cls(loop)

    @property
    def is_here(self) -> bool:
        """Whether the caller runs in it."""
        return running_loop() is self._loop

    @property
    def is_alive(self) -> bool:
        """Whether it runs, in any thread of this process."""
        if self._pid != os.getpid():
            return False
        if isinstance(self._loop, asyncio.AbstractEventLoop):
            return self._loop.is_running()
        return self.is_here or self.call_soon(_nothing)

    def is_among(self, loops: Container[object]) -> bool:
        """Whether it is one of ``loops``, which are asyncio's and trio's own objects."""
        return self._loop in loops

    @property
    def is_gone(self) -> bool:
        """Whether it will never run again, even if it has tasks left."""
        if isinstance(self._loop, asyncio.AbstractEventLoop):
            return self._loop.is_closed()
        return not self.is_alive

    def call_soon(self, call: Callable[..., object], *arguments: object) -> bool:
        """Schedule ``call`` in it, from any thread; return False if it has ended."""
        try:
            if isinstance(self._loop, asyncio.AbstractEventLoop):
                self._loop.call_soon_threadsafe(call, *arguments)
            else:
                self._loop.run_sync_soon(call, *arguments)
        except RuntimeError:
            return False
        return True

    def call(self, call: Callable[..., object], *arguments: object) -> None:
        """Call ``call`` in it from a thread without an event loop, and wait for its return.

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

    async def run(self, function: Callable[..., Awaitable[_Returned]], *arguments: object) -> _Returned | None:
        """Await ``function`` in it from another event loop; return its result, or None if this loop ends before.

        It goes on if the caller is cancelled.
        """
        caller = EventLoop.running()
        assert caller is not None
        done = anyio.Event()
        returned: list[_Returned] = []
        raised: list[Exception] = []

        async def run() -> None:
            try:
                returned.append(await function(*arguments))
            except Exception as error:
                raised.append(error)
            finally:
                caller.call_soon(done.set)

        if self.call_soon(spawn, run):
            while not done.is_set() and self.is_alive:
                with anyio.move_on_after(_LOST_AFTER_S):
                    await done.wait()
        if raised:
            raise raised[0]
        return returned[0] if returned else None


class Claim:
    """Claim of one event loop on a piece of work that only one may do at a time.

    A boolean would stay True after its event loop was closed with tasks in it, and in a child process.
    """

    __slots__ = ("_holder",)

    def __init__(self) -> None:
        self._holder: EventLoop | None = None

    def take(self) -> EventLoop | None:
        """Take the work; return the holder for :meth:`release`, None if it is taken or no event loop runs here."""
        with COUNTING:
            if self.is_taken:
                return None
            self._holder = EventLoop.running()
            return self._holder

    def release(self, holder: EventLoop) -> bool:
        """Give up the work; return False if another event loop has taken it over meanwhile."""
        with COUNTING:
            if is_held := self.is_held_by(holder):
                self._holder = None
            return is_held

    def is_held_by(self, holder: EventLoop) -> bool:
        """Whether ``holder`` still has the work."""
        return self._holder is holder

    @property
    def is_taken(self) -> bool:
        """Whether a running event loop has the work."""
        holder = self._holder
        return holder is not None and holder.is_alive

    @property
    def is_lost(self) -> bool:
        """Whether an event loop has taken the work that no longer runs."""
        holder = self._holder
        return holder is not None and not holder.is_alive

    def forget(self) -> None:
        """Give up the work in a child process."""
        self._holder = None


def _nothing() -> None:
    pass


def running_loop() -> Any:
    """Return an object for the event loop that runs in this thread: asyncio's loop, trio's token, or None."""
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


def spawn(function: Callable[..., Coroutine[Any, Any, object]], *arguments: object) -> None:
    """Run ``function``, which must not raise, in a background task, unless the event loop is about to end.

    It is no task group's: without a lifespan nothing could keep a task group open.
    """
    if on_asyncio():
        # An empty context: the caller's variables, as of a session, would live as long as the task.
        task = asyncio.get_running_loop().create_task(function(*arguments), context=contextvars.Context())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
    else:
        import trio  # noqa: PLC0415 - only where it runs

        try:
            trio.lowlevel.spawn_system_task(function, *arguments)
        except RuntimeError:
            # trio still calls what other threads have scheduled when it starts no tasks any more, and ends by an error.
            trio.lowlevel.current_trio_token()  # outside of trio it raises


def context_of_task(frame: FrameType, loop: Any) -> contextvars.Context | None:
    """Return the context of the task that an event loop runs; None if another thread cannot find it.

    :param frame: the event loop's own innermost frame.
    :param loop: asyncio's, or trio's token.
    """
    found: object = None
    if frame.f_code.co_name == "unrolled_run":  # trio
        found = getattr(frame.f_locals.get("task"), "context", None)
    elif isinstance(handle := frame.f_locals.get("self"), asyncio.Handle):
        found = getattr(handle, "_context", None)
    elif isinstance(loop, asyncio.AbstractEventLoop) and (task := asyncio.current_task(loop)) is not None:
        found = getattr(task, "get_context", lambda: None)()  # from Python 3.12 on
    return found if isinstance(found, contextvars.Context) else None


def inside_event_loop() -> bool:
    """Whether an event loop runs in this thread."""
    try:
        anyio.get_current_task()
    except RuntimeError:
        return False
    return True


def on_asyncio() -> bool:
    """Whether this runs in asyncio's event loop, not in trio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def next_turn() -> Awaitable[None]:
    """Return an awaitable of the event loop's next turn. On asyncio anyio's own takes twice as long."""
    return asyncio.sleep(0) if on_asyncio() else anyio.lowlevel.checkpoint()


def cancelled_from_outside() -> bool:
    """Whether the current asyncio task is cancelled; False on trio, whose scopes repeat a cancellation."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False
    return task is not None and task.cancelling() > 0


class Deadline(Protocol):
    """Decision whether there is more time."""

    @property
    def check_at(self) -> float:
        """Monotonic seconds of the next useful call of :meth:`is_over`."""

    def is_over(self, now: float) -> bool:
        """Whether the time is up."""


def move_on_after(seconds: float, deadline: Deadline | None = None) -> anyio.CancelScope | Timeout:
    """Return a context manager that cancels its block after ``seconds``; execution continues after the block.

    ``cancelled_caught`` says whether it did.

    :param deadline: decides instead of ``seconds``, on asyncio.
    """
    return Timeout(seconds, deadline=deadline) if on_asyncio() else anyio.move_on_after(seconds)


@types.coroutine
def limited(
    coroutine: Coroutine[Any, Any, object], limit: Callable[..., anyio.CancelScope | Timeout], *arguments: object
) -> Generator[Any, Any, bool]:
    """Await ``coroutine`` within ``limit(*arguments)``, as :func:`move_on_after`; return whether that cancelled it.

    On asyncio the limit begins only when the coroutine first waits. Most sends of servers never do, and a timer would
    take longer than they. On trio it is a scope, which has to enclose those of the coroutine.
    """
    if not on_asyncio():
        with limit(*arguments) as around:
            yield from coroutine
        return around.cancelled_caught
    try:
        future = coroutine.send(None)
        with limit(*arguments) as timeout:
            while True:
                try:
                    yield future
                except BaseException as error:
                    future = coroutine.throw(error)
                else:
                    future = coroutine.send(None)
    except StopIteration:
        return False
    return timeout.cancelled_caught


class Timeout:
    """Time-out for an asyncio task, like :func:`asyncio.timeout`, but without raising TimeoutError.

    It cancels once, as asyncio does. A scope of anyio would cancel repeatedly. A shielded scope does not hold it off.

    :param seconds: after which it cancels.
    :param task: the current task by default, from now on.
    :param cancelling: how often ``task`` had been cancelled before the limited work began.
    :param deadline: decides instead of ``seconds``.
    """

    __slots__ = ("_cancelling", "_deadline", "_has_expired", "_task", "_timer", "cancelled_caught")

    def __init__(
        self,
        seconds: float,
        task: asyncio.Task[object] | None = None,
        cancelling: int = 0,
        deadline: Deadline | None = None,
    ) -> None:
        if task is None:
            task = asyncio.current_task()
            assert task is not None
            cancelling = task.cancelling()
        self._task: asyncio.Task[object] | None = task
        self._cancelling = cancelling
        self._has_expired = False
        self._deadline = deadline
        if deadline is not None:
            seconds = deadline.check_at - time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)
        self.cancelled_caught = False

    def _expire(self) -> None:
        assert self._task is not None
        if self._deadline is not None and not self._deadline.is_over(now := time.monotonic()):
            self._timer = asyncio.get_running_loop().call_later(max(self._deadline.check_at - now, 0.0), self._expire)
            return
        self._has_expired = True
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self.stop(error)

    def stop(self, error: BaseException | None) -> bool:
        """Stop the time-out; return whether it has caused ``error``, with which the task ends."""
        self._timer.cancel()
        task, self._task = self._task, None  # break a cycle, if the task's exception refers to this object
        if self._has_expired:
            assert task is not None
            is_ours_alone = task.uncancel() <= self._cancelling  # False if somebody else has cancelled it too
            self.cancelled_caught = is_ours_alone and issubclass(type(error), asyncio.CancelledError)
        return self.cancelled_caught
