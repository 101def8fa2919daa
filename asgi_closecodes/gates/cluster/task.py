"""A task that belongs to a process: it runs in one event loop at a time, and ends well."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable

from asgi_closecodes.concurrency import COUNTING, EventLoop, on_asyncio
from asgi_closecodes.events import BackgroundFailed, Observer
from asgi_closecodes.naming import name_of


class ProcessTask:
    """Runs ``turn`` again and again, when it is due or somebody waits for it; and ``end`` at last.

    :param turn: what is to be done.
    :param due: returns the seconds until it is to be done again.
    :param end: called when the task ends, cancelled or not.
    :param report: called with what they raise.
    :param lost: called before the task goes on in place of one whose event loop was closed under it.
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
        """Begin anew in a child process: the task and its event loop are the parent's."""
        self._loop: EventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._waiters: list[tuple[EventLoop, asyncio.Event]] = []

    @property
    def is_running(self) -> bool:
        """Whether the task runs, in whatever event loop."""
        return self._task is not None and not self._task.done() and self._loop is not None and self._loop.is_alive

    def start(self) -> None:
        """Have the task run: in this event loop, if it does not in another one.

        :raises RuntimeError: on trio, where redis-py does not run.
        """
        if not on_asyncio():
            raise RuntimeError("cluster gates need asyncio: redis-py does not run on trio; use an asyncio worker")
        with COUNTING:
            if not self.is_running:
                if self._task is not None and not self._task.done():
                    self._lost()
                self._loop = EventLoop.running()
                self._wake = asyncio.Event()
                loop = asyncio.get_running_loop()
                self._task = loop.create_task(self._contained(), context=contextvars.Context())
                # Who waits in another event loop starts another one.
                self._task.add_done_callback(lambda _task: self._wake_waiters())

    def wake_if_due(self) -> None:
        """Take the next turn if it is due; from any thread."""
        if self._due() <= 0:
            self._wake_up()

    async def turn(self) -> None:
        """Wait until the next turn was taken, in whatever event loop."""
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
        """End the task; it may be called from any thread."""
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            loop.call_soon(task.cancel)

    async def stop(self) -> None:
        """End the task, and wait until it has."""
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
            if self._task is task:  # else another event loop has taken over while this one stood still
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
    """Whether this task is to end: redis-py swallows a cancellation that comes while it connects."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
