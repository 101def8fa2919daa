"""500 echo sessions, each of which sends 4 messages a second, while one more sends as fast as it is read.

With ``messages_per_second`` set and without the middleware: how long the messages of the 500 take, beside the same
server without the one. Turns are short: a stall of the machine delays as many messages as the slowest 1 % are. He is
held up before a turn begins; what that takes is a figure of its own.
"""

import time
from contextlib import contextmanager

from .harness.apps import MESSAGES_PER_SECOND
from .harness.live import served
from .harness.paired import Comparison
from .harness.suite import Benchmark

SOCKETS = 500
PACE = 4
"""Messages a second of each of them: fewer than the limit."""

P99, FLOODED, START = "p99 ms", "echoes/s of the flooder", "server ms until he is held up"
LIMITED, LIMITED_ALONE = "limit, one floods", "limit, nobody floods"
BARE, BARE_ALONE = "bare, one floods", "bare, nobody floods"
BENCHMARK = Benchmark(
    f"{SOCKETS} echo sessions and one that floods, with `messages_per_second={MESSAGES_PER_SECOND}` and without",
    [
        Comparison(P99, LIMITED, LIMITED_ALONE, most=1.2),
        Comparison(P99, BARE, BARE_ALONE),
        Comparison(P99, LIMITED_ALONE, BARE_ALONE),
        Comparison(P99, LIMITED_ALONE),
        Comparison(P99, BARE_ALONE),
        Comparison(START, LIMITED),
        Comparison(FLOODED, LIMITED),
        Comparison(FLOODED, BARE),
    ],
    pairs=14,
    short_turns=6,
)


def _register(name, app, *, floods):
    @BENCHMARK.subject(name)
    @contextmanager
    def subject(run):
        count = run.size(SOCKETS, 50)
        run.needs_files(count + 100)
        seconds = 1 if run.quick else 0.5  # of fewer sockets, where the machine is busy nobody may have sent by then
        with served(run, app) as server:
            run.load.open(name, server.url, count)

            def turn():
                figures = {}
                began_at, before = time.perf_counter(), server.processor_time()
                if floods:
                    run.load.flood(server.url)
                if name == LIMITED:
                    server.settle()
                    figures[START] = 1000 * (server.processor_time() - before)
                with server.spending(run) as spent:
                    seen = run.load.overload(name, server.url, seconds, PACE, 0)
                figures |= {P99: seen["p99"], "server busy": spent.seconds / seen["seconds"]}
                if floods:
                    flooded = run.load.stop_flood()
                    assert flooded["was_open"], "the flooder was closed before the end"
                    figures[FLOODED] = flooded["echoes"] / (time.perf_counter() - began_at)
                server.settle()
                return figures

            yield turn
            assert run.load.close(name) == {"open": count}


_register(LIMITED, "echo_metered", floods=True)
_register(LIMITED_ALONE, "echo_metered", floods=False)
_register(BARE, "bare_echo", floods=True)
_register(BARE_ALONE, "bare_echo", floods=False)
