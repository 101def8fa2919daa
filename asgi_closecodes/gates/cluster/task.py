"""A task that belongs to a process: it runs in one event loop at a time, and ends well."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable

from asgi_closecodes.concurrency import logged, on_asyncio


class ProcessTask:
    """Runs ``turn`` again and again, when it is due or somebody waits for it; and ``end`` at last.

    :param turn: what is to be done.
    :param due: returns the seconds until it is to be done again.
    :param end: called when the task ends, cancelled or not.
    """

    def __init__(
        self,
        turn: Callable[[], Awaitable[None]],
        due: Callable[[], float],
        end: Callable[[], Awaitable[None]],
    ) -> None:
        self._turn = turn
        self._due = due
        self._end = end
        self.forget()

    def forget(self) -> None:
        """Begin anew in a child process: the task and its event loop are the parent's."""
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._done = asyncio.Event()

    def start(self) -> None:
        """Have the task run in this event loop.

        :raises RuntimeError: on trio, where redis-py does not run.
        """
        if not on_asyncio():
            raise RuntimeError("cluster gates need asyncio: redis-py does not run on trio; use an asyncio worker")
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self.forget()
            self._task = loop.create_task(logged(self._run), context=contextvars.Context())

    def look(self) -> None:
        """Take the next turn if it is due."""
        if self._due() <= 0:
            self._wake.set()

    async def turn(self) -> None:
        """Wait until the next turn was taken."""
        self._wake.set()
        await self._done.wait()

    def stop_soon(self) -> None:
        """End the task; it may be called from any thread."""
        if self._task is not None and not self._task.get_loop().is_closed():
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    async def stop(self) -> None:
        """End the task, and wait until it has."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        try:
            while not is_cancelled():
                try:
                    await self._turn()
                finally:
                    self._tell()
                await self._pause()
        finally:
            self._tell()
            await self._end()

    async def _pause(self) -> None:
        while (delay := self._due()) > 0 and not is_cancelled():
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    def _tell(self) -> None:
        done, self._done = self._done, asyncio.Event()
        done.set()


def is_cancelled() -> bool:
    """Whether this task is to end: redis-py swallows a cancellation that comes while it connects."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
