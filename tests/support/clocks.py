"""Event loops whose clock jumps ahead as soon as nobody has anything to do but to wait."""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import anyio
import pytest
import trio.testing

_Result = TypeVar("_Result")

START_S = 1000.0
"""Seconds that the clock shows in the beginning."""

TURN_S = 0.0001
"""Seconds that a turn of an event loop takes: time goes on for who waits beside a task that is always ready."""

_real_clock = time.monotonic


class JumpingClock:
    """Clock of one event loop, and of whoever else reads it: time is only what is slept there.

    A busy machine makes nothing late then, and an hour takes no time. For what sleeps in its event loop alone:
    other threads are as slow as ever.
    """

    def __init__(self) -> None:
        self._clock = trio.testing.MockClock(autojump_threshold=0)
        self._clock.jump(START_S)

    def options(self, backend: str) -> dict[str, Any]:
        """Return the options of ``backend`` for an event loop with this clock."""
        if backend == "trio":
            return {"clock": self._clock, "instruments": [_Turns(self._clock)]}
        return {"loop_factory": functools.partial(_JumpingLoop, self._clock)}

    def replace_monotonic(self, patch: pytest.MonkeyPatch) -> None:
        """Have the package read this clock wherever it reads ``time.monotonic()``."""
        patch.setattr(time, "monotonic", self._clock.current_time)
        modules = (module for name, module in sys.modules.items() if name.partition(".")[0] == "asgi_closecodes")
        for function in _taking_a_clock(*modules):
            patch.setattr(function, "__defaults__", (*self._instead(function.__defaults__ or ()),))
            named = function.__kwdefaults__ or {}
            patch.setattr(function, "__kwdefaults__", dict(zip(named, self._instead(named.values()), strict=True)))

    def _instead(self, defaults: Iterable[object]) -> Iterator[object]:
        return (self._clock.current_time if value is _real_clock else value for value in defaults)


@functools.cache
def _taking_a_clock(*modules: ModuleType) -> list[FunctionType]:
    """Return the functions and methods whose argument is ``time.monotonic`` unless another is given."""
    spaces: list[Mapping[str, object]] = [vars(module) for module in modules]
    spaces += [vars(value) for space in spaces for value in space.values() if isinstance(value, type)]
    functions = {value for space in spaces for value in space.values() if isinstance(value, FunctionType)}
    return [
        function
        for function in functions
        if _real_clock in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    ]


class _JumpingLoop(asyncio.SelectorEventLoop):
    """What the clock is to trio."""

    _ready: Any
    _scheduled: Any

    def __init__(self, clock: trio.testing.MockClock) -> None:
        super().__init__()
        self._jumping_clock = clock

    def time(self) -> float:
        return self._jumping_clock.current_time()

    def _run_once(self) -> None:
        self._jumping_clock.jump(TURN_S)
        if not self._ready:
            times = [timer.when() for timer in self._scheduled if not timer.cancelled()]
            self._jumping_clock.jump(max(min(times, default=0.0) - self.time(), 0.0))
        super()._run_once()  # type: ignore[misc]


class _Turns(trio.abc.Instrument):
    def __init__(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock

    def before_io_wait(self, timeout: float) -> None:
        self._clock.jump(TURN_S)


def run_without_waiting(main: Callable[[], Awaitable[_Result]], backend: str) -> _Result:
    """Run ``main`` with a jumping clock; ``time.monotonic()`` is as ever."""
    return anyio.run(main, backend=backend, backend_options=JumpingClock().options(backend))
