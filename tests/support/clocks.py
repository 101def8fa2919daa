"""Event loops whose clock jumps ahead as soon as nobody has anything to do but to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import trio.testing

_Result = TypeVar("_Result")


class _JumpingLoop(asyncio.SelectorEventLoop):
    """What ``MockClock(autojump_threshold=0)`` is to trio."""

    _ready: Any
    _scheduled: Any

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


def run_without_waiting(main: Callable[[], Awaitable[_Result]], backend: str) -> _Result:
    """Run ``main`` where time is only what is slept: a busy machine makes nothing late, and an hour takes no time.

    For what sleeps in its event loop alone: ``time.monotonic()`` and other threads are as slow as ever.
    """
    if backend == "trio":
        options: dict[str, Any] = {"clock": trio.testing.MockClock(autojump_threshold=0)}
    else:
        options = {"loop_factory": _JumpingLoop}
    return anyio.run(main, backend=backend, backend_options=options)
