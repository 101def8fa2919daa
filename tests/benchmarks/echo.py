"""Round trips on live uvicorn: each socket sends its next message when the last one has come back."""

from contextlib import contextmanager

from .harness.live import served
from .harness.paired import Comparison
from .harness.suite import Benchmark

SOCKETS = {50: 50, 1_000: 100}
"""How many; and how many in a quick run."""

BENCHMARK = Benchmark("Echoes on live uvicorn, default features and `MaxSessions`; then with metrics too")


def _register(name, app, sockets):
    @BENCHMARK.subject(f"{name}, {sockets} sockets")
    @contextmanager
    def subject(run):
        count = run.size(sockets, SOCKETS[sockets])
        run.needs_files(count + 100)
        with served(run, app) as server:
            run.load.open(server.url, server.url, count)

            def turn():
                with server.spending(run) as spent:
                    echoes = run.load.echo(server.url, run.seconds)
                return {
                    "round trips/s": echoes["count"] / echoes["seconds"],
                    "p99 ms": echoes["p99"],
                    **spent.each(echoes["count"], echoes["seconds"]),
                }

            yield turn
            assert run.load.close(server.url) == {"open": count}


for sockets in SOCKETS:
    bare = f"bare, {sockets} sockets"
    _register("bare", "bare_echo", sockets)
    BENCHMARK.comparisons.append(Comparison("server us", bare))
    _register("receive wrapped by hand", "echo_by_hand", sockets)
    BENCHMARK.comparisons += [
        Comparison(figure, f"receive wrapped by hand, {sockets} sockets", bare)
        for figure in ("round trips/s", "p99 ms", "server us")
    ]
    for name, app in {"middleware": "echo_limited", "with metrics": "echo_measured"}.items():
        _register(name, app, sockets)
        BENCHMARK.comparisons += [
            Comparison("round trips/s", f"{name}, {sockets} sockets", bare, least=0.99),
            Comparison("p99 ms", f"{name}, {sockets} sockets", bare, most=1.02),
            Comparison("server us", f"{name}, {sockets} sockets", bare),
            Comparison("server us", f"{name}, {sockets} sockets", bare, by="difference"),
        ]
