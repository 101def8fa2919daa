"""500 echo sessions, each of which sends 4 messages a second, while one more sends as fast as it is read.

With ``messages_per_second`` set and without the middleware: how long the messages of the 500 take, beside the same
server without the one.
"""

from contextlib import contextmanager

from .harness.apps import MESSAGES_PER_SECOND
from .harness.live import served
from .harness.paired import Comparison
from .harness.suite import Benchmark

SOCKETS = 500
PACE = 4
"""Messages a second of each of them: fewer than the limit."""

P99, FLOODED = "p99 ms", "echoes/s of the flooder"
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
        Comparison(FLOODED, LIMITED),
        Comparison(FLOODED, BARE),
    ],
)


def _register(name, app, *, floods):
    @BENCHMARK.subject(name)
    @contextmanager
    def subject(run):
        count = run.size(SOCKETS, 50)
        run.needs_files(count + 100)
        seconds = run.size(2, 1)  # not less: where the machine is busy nobody may have sent in half of one
        with served(run, app) as server:
            run.load.open(name, server.url, count)

            def turn():
                if floods:
                    run.load.flood(server.url)
                with server.spending(run) as spent:
                    seen = run.load.overload(name, server.url, seconds, PACE, 0)
                figures = {P99: seen["p99"], "server busy": spent.seconds / seen["seconds"]}
                if floods:
                    flooded = run.load.stop_flood()
                    assert flooded["was_open"], "the flooder was closed before the end"
                    figures[FLOODED] = flooded["echoes"] / seen["seconds"]
                server.settle()
                return figures

            yield turn
            assert run.load.close(name) == {"open": count}


_register(LIMITED, "echo_metered", floods=True)
_register(LIMITED_ALONE, "echo_metered", floods=False)
_register(BARE, "bare_echo", floods=True)
_register(BARE_ALONE, "bare_echo", floods=False)
