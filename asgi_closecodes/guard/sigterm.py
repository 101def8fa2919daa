"""Draining at SIGTERM, in front of a server's own signal handler."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

from asgi_closecodes import concurrency, events
from asgi_closecodes.bounds import finite
from asgi_closecodes.concurrency import EventLoop, on_asyncio
from asgi_closecodes.settings import Settings

SAME_SIGNAL_S = 2.0
"""Seconds in which another SIGTERM counts as the same one. systemd signals every process of a unit, and then uvicorn's
parent its workers. gunicorn signals a worker that it replaces every second until that is gone. A busy worker hears it
less often, so all of gunicorn's count as one; in the end it kills the worker."""


class Drainable(Protocol):
    """Guard that can be drained."""

    settings: Settings

    async def drain(self) -> None:
        """Close all sessions."""

    def report(self, event: events.Event) -> None:
        """Hand ``event`` to every observer."""


@contextlib.contextmanager
def drain_at_sigterm(guard: Drainable) -> Iterator[None]:
    """Drain ``guard`` at SIGTERM as long as the block runs, see :func:`arm`."""
    handler = arm(guard)
    try:
        yield
    finally:
        if handler is not None:
            handler.remove(guard)


def arm(guard: Drainable) -> SigtermHandler | None:
    """Drain ``guard`` at the first SIGTERM, and call the server's handler then; a later signal goes straight there.

    uvicorn closes every socket within 60 ms of the signal, before ``lifespan.shutdown``: a drain has to come first.
    uvicorn sets its handler by :func:`signal.signal` before the lifespan starts, so it can be chained. hypercorn sets
    its own in the event loop, and granian's parent process stops its workers: there this only reports why not.
    """
    before = signal.getsignal(signal.SIGTERM)
    if (reason := _why_not(before)) is not None:
        guard.report(events.SigtermDrainUnavailable(reason))
        return None
    assert callable(before)
    loop = EventLoop.running()
    assert loop is not None
    if isinstance(before, SigtermHandler) and before.loop.is_here:
        handler = before
    else:
        handler = SigtermHandler(before, loop)
        signal.signal(signal.SIGTERM, handler)
    handler.add(guard)
    window, patience = guard.settings.drain_window, guard.settings.drain_patience
    limit = _graceful_timeout(handler.before)
    if limit is not None and window + patience >= limit:
        guard.report(events.DrainWindowTooLong(window, limit, patience))
    return handler


def _why_not(before: Any) -> str | None:
    if threading.current_thread() is not threading.main_thread():
        return "the application does not run in the main thread, which gets the signals"
    if not callable(before) or before is signal.default_int_handler:
        return "the server has set no signal handler in this process"
    if not on_asyncio() or getattr(before, "__module__", "").partition(".")[0] in {"asyncio", "uvloop"}:
        return "the server's signal handling belongs to its event loop"
    return None


def _graceful_timeout(before: object) -> float | None:
    """Return the seconds after SIGTERM in which gunicorn kills its worker, None where it does not run.

    uvicorn's signal handler is a method of its server, which tells a worker of gunicorn that it is alive.
    """
    try:
        worker = before.__self__.config.callback_notify.__self__  # type: ignore[attr-defined]
        return finite(worker.cfg.graceful_timeout)
    except Exception:
        return None


class SigtermHandler:
    """Signal handler that drains guards, all at once, and then calls the previous handler."""

    def __init__(self, before: Callable[[int, FrameType | None], Any], loop: EventLoop) -> None:
        self.before = before
        self.loop = loop
        self.guards: weakref.WeakSet[Drainable] = weakref.WeakSet()
        self._signalled_at: float | None = None
        self._same_signal_s = SAME_SIGNAL_S if _graceful_timeout(before) is None else math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Drain at the first signal; stop at another one after :data:`SAME_SIGNAL_S`, but for gunicorn's."""
        now, last = time.monotonic(), self._signalled_at
        self._signalled_at = now
        if (
            not self.loop.is_alive
        ):  # the event loop was closed under the lifespan, or is the parent process's: no drain can run
            self.before(number, frame)
        elif last is None:
            self.loop.call_soon(concurrency.spawn, self._drain_and_stop)
        elif now - last >= self._same_signal_s:
            self.before(number, frame)

    def add(self, guard: Drainable) -> None:
        """Drain ``guard`` too, at once if the signal has already come."""
        self.guards.add(guard)
        if self._signalled_at is not None:
            concurrency.spawn(guard.drain)

    def remove(self, guard: Drainable) -> None:
        """Drain ``guard`` no more; restore the server's handler if it was the last."""
        self.guards.discard(guard)
        before = self.before
        if not self.guards and signal.getsignal(signal.SIGTERM) is self:
            signal.signal(signal.SIGTERM, before)

    async def _drain_and_stop(self) -> None:
        try:
            await asyncio.gather(*(guard.drain() for guard in self.guards))
        finally:
            self.before(signal.SIGTERM, None)
