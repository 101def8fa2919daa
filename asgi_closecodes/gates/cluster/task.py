"""Background task of a process: it runs in one of its event loops at a time, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable

from asgi_closecodes.concurrency import COUNTING, EventLoop, on_asyncio
from asgi_closecodes.events import BackgroundFailed, Observer
from asgi_closecodes.naming import name_of


class ProcessTask:
    """Runs ``turn`` whenever it is due or somebody waits for it, and ``end`` at its end.

    :param turn: does the work once.
    :param due: returns the seconds until the next turn is due.
    :param end: called when the task ends, cancelled or not.
    :param report: called with exceptions of both.
    :param lost: called before the task starts again after its event loop was closed.
    """

    def __init__(
        self,
        turn: Callable[[], Awaitable[None]],
        due: Callable[[], float],
        end: Callable[[], Awaitable[None]],
        report: Observer,
        lost: Callable[[], object] = lambda: None,
    ) -> None:
        self._report = report
        self._turn = turn
        self._due = due
        self._end = end
        self._lost = lost
        self.forget()

    def forget(self) -> None:
        """Reset in a child process: the task and its event loop are the parent's."""
        self._loop: EventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._waiters: list[tuple[EventLoop, asyncio.Event]] = []

    @property
    def is_running(self) -> bool:
        """Whether the task runs in any event loop."""
        return self._task is not None and not self._task.done() and self._loop is not None and self._loop.is_alive

    def start(self) -> None:
        """Start the task in this event loop, unless it runs in another one.

        :raises RuntimeError: on trio, where redis-py does not run.
        """
        if not on_asyncio():
            raise RuntimeError("cluster gates need asyncio: redis-py does not run on trio; use an asyncio worker")
        with COUNTING:
            if not self.is_running:
                if self._task is not None and not self._task.done():  # its event loop was closed
                    self._lost()
                self._loop = EventLoop.running()
                self._wake = asyncio.Event()
                loop = asyncio.get_running_loop()
                # An empty context, as the task outlives the session that starts it.
                self._task = loop.create_task(self._contained(), context=contextvars.Context())
                # A waiter in another event loop starts it there.
                self._task.add_done_callback(lambda _task: self._wake_waiters())

    def wake_if_due(self) -> None:
        """Take the next turn if it is due; from any thread."""
        if self._due() <= 0:
            self._wake_up()

    async def turn(self) -> None:
        """Wait for the end of the next turn, in any event loop."""
        self.start()
        here = EventLoop.running()
        assert here is not None
        taken = asyncio.Event()
        with COUNTING:
            self._waiters.append((here, taken))
        self._wake_up()
        await taken.wait()

    def _wake_up(self) -> None:
        loop, wake = self._loop, self._wake
        if loop is None or loop.is_here:
            wake.set()
        else:
            loop.call_soon(wake.set)

    def stop_soon(self) -> None:
        """Have the task end; from any thread."""
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            loop.call_soon(task.cancel)

    async def stop(self) -> None:
        """End the task, and wait for its end."""
        loop, task = self._loop, self._task
        if loop is None or task is None or not self.is_running:
            return
        if loop.is_here:
            task.cancel()
            await asyncio.wait([task])
        else:
            await loop.run(self.stop)

    async def _contained(self) -> None:
        try:
            await self._run()
        except Exception as error:
            self._report(BackgroundFailed(name_of(self._turn), error))

    async def _run(self) -> None:
        task = asyncio.current_task()
        try:
            while self._task is task and not is_cancelled():
                try:
                    await self._turn()
                finally:
                    self._wake_waiters()
                await self._pause()
        finally:
            self._wake_waiters()
            if self._task is task:  # else another event loop has taken over while this one was blocked
                await self._end()

    async def _pause(self) -> None:
        while (delay := self._due()) > 0 and not is_cancelled():
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    def _wake_waiters(self) -> None:
        with COUNTING:
            waiters, self._waiters = self._waiters, []
        for loop, event in waiters:
            if loop.is_here:
                event.set()
            else:
                loop.call_soon(event.set)


def is_cancelled() -> bool:
    """Whether this task was cancelled; redis-py swallows a cancellation while it connects."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
