"""What it costs to admit a session and to give its place back, each with a key that was never seen before.

In one process and without a server; beside libraries that limit calls, each as its documentation has it.
"""

import asyncio
import gc
import itertools
import sys
import time
from contextlib import contextmanager

from asgi_closecodes import Guard, Settings
from asgi_closecodes.gates import AllOf, MaxSessions, MaxSessionsPerKey
from asgi_closecodes.session import Session

from .harness.paired import Comparison
from .harness.suite import Benchmark

US, BLOCKS = "us a session", "blocks left a key"
ALL = "settings, all limits"
BENCHMARK = Benchmark(
    "Admitting one session and giving its place back, a new key each; a million keys together",
    [
        *(Comparison(US, name, most=2.0) for name in ("MaxSessions", "MaxSessionsPerKey")),
        *(Comparison(US, f"settings, {which}") for which in ("no limit", "max_sessions")),
        Comparison(US, ALL, most=6.0),
        *(Comparison(US, ALL, peer) for peer in ("limits", "aiolimiter")),
        *(Comparison(BLOCKS, name, most=0.01) for name in ("MaxSessionsPerKey", ALL)),
        *(Comparison(BLOCKS, peer) for peer in ("limits", "aiolimiter")),
    ],
    pairs=25,
)

ROOM = 10**9


def _address(number):
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _turns(runner, count, prepare, admit):
    """Return what runs ``admit`` over what ``prepare`` makes of so many new clients, all of whom are gone afterwards."""
    clients = itertools.count()

    async def timed(prepared):
        start = time.process_time_ns()
        await admit(prepared)
        return (time.process_time_ns() - start) / count / 1000

    def turn():
        gc.collect()
        blocks = sys.getallocatedblocks()
        took = runner.run(timed([prepare(_address(next(clients))) for _ in range(count)]))
        gc.collect()
        return {US: took, BLOCKS: (sys.getallocatedblocks() - blocks) / count}

    return turn


def _gate(build):
    @contextmanager
    def subject(run):
        guard = Guard(Settings())  # of the sessions alone
        gate = build()

        def session_of(client):
            return Session(guard, {"type": "websocket", "path": "/", "client": (client, 5000)}, None, None)

        def keep(session, permits):
            session.permits = permits

        async def admit(sessions):
            for session in sessions:
                assert gate.take(session, keep) is None  # no gate waits
                gate.release(session, gate.gates, session.permits)

        with asyncio.Runner() as runner:
            yield _turns(runner, run.size(40_000, 500), session_of, admit)

    return subject


def _settings(**limits):
    guards = []  # a gate asks its guard whether that drains

    def build():
        guards.append(Guard(Settings(**limits)))
        return guards[-1].gate

    return _gate(build)


BENCHMARK.subject("MaxSessions")(_gate(lambda: AllOf(MaxSessions(ROOM))))
BENCHMARK.subject("MaxSessionsPerKey")(_gate(lambda: AllOf(MaxSessionsPerKey(ROOM))))
BENCHMARK.subject("settings, no limit")(_settings())
BENCHMARK.subject("settings, max_sessions")(_settings(max_sessions=ROOM))
BENCHMARK.subject(ALL)(
    _settings(
        **dict.fromkeys(("max_sessions", "max_sessions_per_client", "max_handshakes_in_progress"), ROOM),
        handshakes_per_second=ROOM,
        max_loop_lag=60,
        max_memory=1.0,
        max_cpu=1.0,
    )
)


@BENCHMARK.subject("limits")
@contextmanager
def limits(run):
    from limits import RateLimitItemPerHour
    from limits.aio.storage import MemoryStorage
    from limits.aio.strategies import FixedWindowRateLimiter

    limit = RateLimitItemPerHour(1000)
    limiter = None

    async def hit(clients):
        nonlocal limiter
        if limiter is None:  # it wants an event loop
            limiter = FixedWindowRateLimiter(MemoryStorage())
        for client in clients:
            assert await limiter.hit(limit, client)

    with asyncio.Runner() as runner:
        yield _turns(runner, run.size(40_000, 500), str, hit)


@BENCHMARK.subject("aiolimiter")
@contextmanager
def aiolimiter(run):
    from aiolimiter import AsyncLimiter

    limiters = {}

    async def enter(clients):
        for client in clients:
            limiter = limiters.get(client)
            if limiter is None:
                limiter = limiters[client] = AsyncLimiter(1000, 3600)
            async with limiter:
                pass

    with asyncio.Runner() as runner:
        yield _turns(runner, run.size(40_000, 500), str, enter)
