"""50 000 open sessions with all deadlines set, in this process: the work of a tick, and how late sessions end.

Beside them bare ones, each with a timer of its own. And, simulated, how a deploy's cohort comes back.
"""

import asyncio
import gc
import random
import time
from contextlib import contextmanager
from datetime import timedelta

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.guard.ticker import TICK_S
from tests.support.cohort import reconnect_peak

from .harness.inside import Peer, crowd, stay
from .harness.paired import Comparison
from .harness.suite import Benchmark

FOR_LONG_S = 100_000
PER_TICK, LATE, PEAK = "ms a tick", "s late", "peak of reconnects by their mean rate"
BENCHMARK = Benchmark(
    "50 000 open sessions with all deadlines set, 1 000 of them due within 2 s; a cohort of 10 000 with an age",
    [
        Comparison(PER_TICK, "guard", most=1),
        Comparison(LATE, "guard", most=1),
        Comparison(PER_TICK, "a timer each"),
        Comparison(LATE, "a timer each"),
        Comparison(PEAK, "cohort", most=2.6),
    ],
    pairs=9,
)


async def _at_rest(seconds):
    """Return the milliseconds of work in the time of a tick, while nobody does anything."""
    gc.collect()  # what the sessions left that came and went before is not a tick's work
    await asyncio.sleep(2 * TICK_S)  # nor is what was due while this loop did not run, and others had their turn
    start = time.process_time()
    began_at = time.monotonic()
    await asyncio.sleep(seconds)
    return (time.process_time() - start) * 1000 / ((time.monotonic() - began_at) / TICK_S)


def _sizes(run):
    """Return how many sessions there are, how many are due, and within how many seconds."""
    return run.size(50_000, 200), run.size(1_000, 20), run.size(20, 3) / 10


@BENCHMARK.subject("guard")
@contextmanager
def guarded(run):
    sessions, due, within = _sizes(run)
    settings = Settings(max_session_age=FOR_LONG_S, auth_timeout=FOR_LONG_S, idle_timeout=FOR_LONG_S)
    ended = {}

    def note(event):
        if type(event).__name__ == "SessionShed":
            assert event.cause == "expired", event
            ended[event.session.id] = time.monotonic()

    guard = Guard(settings, observers=[note])
    app = CloseCodeMiddleware(stay, guard)

    async def come(count):
        await crowd(app, guard, count)
        for session in guard.sessions:
            if session.expires_at is None:
                session.expires_at = timedelta(seconds=FOR_LONG_S)

    async def turn():
        per_tick = await _at_rest(4 * run.seconds)
        ended.clear()
        at = {}
        for session in random.sample([*guard.sessions], due):
            after = random.uniform(0, within)
            at[session.id] = time.monotonic() + after
            session.expires_at = timedelta(seconds=after)
        while len(guard.sessions) > sessions - due:
            await asyncio.sleep(0.01)
        late = [ended[name] - at[name] for name in at]
        assert min(late) > -0.05, "too early"
        await come(due)
        return {PER_TICK: per_tick, LATE: max(late)}

    with asyncio.Runner() as runner:
        runner.run(come(sessions))
        yield lambda: runner.run(turn())


@BENCHMARK.subject("a timer each")
@contextmanager
def by_hand(run):
    sessions, due, within = _sizes(run)
    timers = {}
    ended = {}

    async def app(scope, receive, send):
        me = object()
        try:
            async with asyncio.timeout(FOR_LONG_S) as timers[me]:
                await stay(scope, receive, send)
        except TimeoutError:
            ended[me] = time.monotonic()
            await send({"type": "websocket.close", "code": 3000})
        finally:
            del timers[me]

    async def come(count, before):
        tasks.extend(asyncio.create_task(Peer(app).visit()) for _ in range(count))
        while len(timers) < before + count:
            await asyncio.sleep(0)

    tasks = []

    async def turn():
        per_tick = await _at_rest(4 * run.seconds)
        ended.clear()
        at = {}
        now = asyncio.get_running_loop().time()
        for name in random.sample([*timers], due):
            at[name] = now + random.uniform(0, within)
            timers[name].reschedule(at[name])
        while len(timers) > sessions - due:
            await asyncio.sleep(0.01)
        await come(due, sessions - due)
        return {PER_TICK: per_tick, LATE: max(ended[name] - at[name] for name in at)}

    with asyncio.Runner() as runner:
        runner.run(come(sessions, 0))
        yield lambda: runner.run(turn())


@BENCHMARK.subject("cohort")
@contextmanager
def cohort(run):
    yield lambda: {PEAK: reconnect_peak(random.random, run.size(10_000, 500))}
