"""How late the event loop is for others while half of 10 000 sessions are shed as fast as can be, in this process."""

import asyncio
import time
from contextlib import contextmanager

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings

from .harness.inside import crowd, stay
from .harness.paired import Comparison
from .harness.suite import Benchmark

MS = "longest turn ms"
BENCHMARK = Benchmark(
    "The event loop's longest turn while 5 000 of 10 000 sessions are shed",
    [Comparison(MS, "shedding"), Comparison("us a session", "shedding"), Comparison(MS, "at rest")],
    pairs=9,
)


async def _longest_turn(goes_on):
    """Return the longest turn of the event loop, in milliseconds, as long as ``goes_on()``."""
    longest, last = 0.0, time.perf_counter()
    while goes_on():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest * 1000


@contextmanager
def _crowded(run):
    """Yield a runner, and what all of whose sessions stay."""
    sessions = run.size(10_000, 100)
    guard = Guard(Settings(max_sessions=sessions, shed_rate=100 * sessions))
    with asyncio.Runner() as runner:
        runner.run(crowd(CloseCodeMiddleware(stay, guard), guard, sessions))
        yield runner, guard, sessions


@BENCHMARK.subject("at rest")
@contextmanager
def at_rest(run):
    with _crowded(run) as (runner, _guard, _sessions):

        async def rest():
            until = time.monotonic() + run.seconds
            return {MS: await _longest_turn(lambda: time.monotonic() < until)}

        yield lambda: runner.run(rest())


@BENCHMARK.subject("shedding")
@contextmanager
def shedding(run):
    with _crowded(run) as (runner, guard, sessions):
        app = CloseCodeMiddleware(stay, guard)

        async def shed():
            half = sessions // 2
            start = time.process_time_ns()
            guard.update(max_sessions=half)
            longest = await _longest_turn(lambda: len(guard.sessions) > half)
            took = (time.process_time_ns() - start) / half / 1000
            guard.update(max_sessions=sessions)
            await crowd(app, guard, half)
            return {MS: longest, "us a session": took}

        yield lambda: runner.run(shed())
