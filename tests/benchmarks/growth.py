"""What admitting, a message, refusing and shedding cost beside 10 to 50 000 open sessions, each crowd in its own process."""

import asyncio
import gc
import itertools
import logging
import multiprocessing
import time
from contextlib import contextmanager

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.gates import MaxSessionsPerKey

from .harness.inside import Peer, Talker, crowd, stay
from .harness.paired import Comparison
from .harness.suite import Benchmark

CROWDS = {10: 10, 100: 20, 1_000: 50, 10_000: 100, 50_000: 500}
"""How many sessions are open; and how many in a quick run."""

FIGURES = ("us an admission", "ns a message", "us a refusal", "us a shed session")
BENCHMARK = Benchmark(
    "The cost of one more, beside so many open sessions",
    [Comparison(figure, f"{max(CROWDS)}", f"{min(CROWDS)}", most=1.1) for figure in FIGURES],
)


def _each(start, count):
    return (time.process_time_ns() - start) / count / 1000


async def _grow(pipe, sessions, count):
    """Keep a crowd of ``sessions``, and measure what ``count`` more cost whenever the pipe says so."""
    logging.disable()
    full = MaxSessionsPerKey(0, key=lambda session: "full" if session.scope["path"] == "/full" else None)
    guard = Guard(Settings(max_sessions=10**9, reject_with="close", max_refusals_per_second=10**9), gate=full)

    async def talk(_scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(20 * count):
            await receive()
            await send({"type": "websocket.send", "text": "x"})

    async def leave(_scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})

    staying, talking, leaving = (CloseCodeMiddleware(handler, guard) for handler in (stay, talk, leave))
    await crowd(staying, guard, sessions)
    gc.collect()
    while await asyncio.to_thread(pipe.recv):
        start = time.process_time_ns()
        for _ in range(count):
            await Peer(leaving).visit()
        admission = _each(start, count)

        start = time.process_time_ns()
        await Talker(talking).visit()
        message = _each(start, 20 * count) * 1000

        start = time.process_time_ns()
        peers = [Peer(staying, "/full") for _ in range(count)]
        for peer in peers:
            await peer.visit()
        refusal = _each(start, count)
        assert {peer.closed_with for peer in peers} == {1013}

        peers, tasks = await crowd(staying, guard, count)
        newest = [*itertools.islice(reversed(guard.sessions), count)]
        start = time.process_time_ns()
        for session in newest:
            await session.shed()
        await asyncio.gather(*tasks)
        shedding = _each(start, count)
        assert {peer.closed_with for peer in peers} == {1013}
        assert len(guard.sessions) == sessions
        pipe.send(dict(zip(FIGURES, (admission, message, refusal, shedding), strict=True)))
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def _grown(*arguments):
    asyncio.run(_grow(*arguments))


def _register(sessions):
    @BENCHMARK.subject(str(sessions))
    @contextmanager
    def subject(run):
        context = multiprocessing.get_context("forkserver" if run.quick else "spawn")
        if run.quick:
            context.set_forkserver_preload([__name__])
        pipe, theirs = context.Pipe()
        there = run.size(sessions, CROWDS[sessions])
        process = context.Process(target=_grown, args=(theirs, there, run.size(1_000, 20)), daemon=True)
        process.start()
        theirs.close()

        def turn():
            pipe.send(True)
            return pipe.recv()

        try:
            yield turn
            pipe.send(False)
            process.join(60)
        finally:
            process.kill()
            process.join()


for sessions in CROWDS:
    _register(sessions)
