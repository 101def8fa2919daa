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
    bare, counted = f"bare, {sockets} sockets", f"both wrapped and counted by hand, {sockets} sockets"
    _register("bare", "bare_echo", sockets)
    _register("receive wrapped by hand", "echo_by_hand", sockets)
    _register("both wrapped and counted by hand", "echo_counted_by_hand", sockets)
    BENCHMARK.comparisons.append(Comparison("server us", bare))
    BENCHMARK.comparisons += [
        Comparison(figure, by_hand, bare)
        for by_hand in (f"receive wrapped by hand, {sockets} sockets", counted)
        for figure in ("round trips/s", "p99 ms", "server us")
    ]
    for name, app in {"middleware": "echo_limited", "with metrics": "echo_measured"}.items():
        _register(name, app, sockets)
        subject = f"{name}, {sockets} sockets"
        BENCHMARK.comparisons += [
            Comparison("round trips/s", subject, counted, least=0.99),
            Comparison("p99 ms", subject, counted, most=1.02),
            Comparison("server us", subject, counted),
            Comparison("round trips/s", subject, bare),
            Comparison("server us", subject, bare, by="difference"),
        ]
