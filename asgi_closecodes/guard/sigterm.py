"""Draining at SIGTERM, in front of a server's own signal handler."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

from asgi_closecodes import concurrency, events
from asgi_closecodes.concurrency import EventLoop, on_asyncio

SAME_SIGNAL = 2.0
"""Seconds in which another SIGTERM is the same one: systemd signals every process of a unit, and then uvicorn's parent
its workers once more."""


class Drainable(Protocol):
    """What is drained."""

    async def drain(self) -> None:
        """Close all sessions."""

    def report(self, event: events.Event) -> None:
        """Hand ``event`` to every observer."""


@contextlib.contextmanager
def drain_at_sigterm(guard: Drainable) -> Iterator[None]:
    """At the first SIGTERM, drain ``guard`` and let the server's handler run then; a later one goes straight there.

    uvicorn closes every socket within 60 ms of the signal, before ``lifespan.shutdown``: a drain has to come
    first. It sets its handler by :func:`signal.signal` before the lifespan starts, and so it can be chained. hypercorn
    asks the event loop for it, and granian is told by its parent process: there this only reports why not.
    """
    before = signal.getsignal(signal.SIGTERM)
    if (reason := _why_not(before)) is not None:
        guard.report(events.SigtermDrainUnavailable(reason))
        yield
        return
    assert callable(before)
    loop = EventLoop.running()
    assert loop is not None
    handler = _chained(guard, before, loop)
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is handler:
            signal.signal(signal.SIGTERM, before)


def _why_not(before: Any) -> str | None:
    if threading.current_thread() is not threading.main_thread():
        return "the application does not run in the main thread, which gets the signals"
    if not callable(before) or before is signal.default_int_handler:
        return "the server has set no signal handler in this process"
    if not on_asyncio() or getattr(before, "__module__", "").partition(".")[0] in {"asyncio", "uvloop"}:
        return "the server's signal handling belongs to its event loop"
    return None


def _chained(
    guard: Drainable, before: Callable[[int, FrameType | None], Any], loop: EventLoop
) -> Callable[[int, FrameType | None], None]:
    told_at: float | None = None

    async def drain_and_stop() -> None:
        try:
            await guard.drain()
        finally:
            before(signal.SIGTERM, None)

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal told_at
        now = time.monotonic()
        if not loop.is_alive:  # it was closed under the lifespan, or is a parent process's: nobody would drain here
            before(number, frame)
        elif told_at is None:
            told_at = now
            loop.call_soon(concurrency.spawn, drain_and_stop)
        elif now - told_at >= SAME_SIGNAL:
            before(number, frame)

    return handler
