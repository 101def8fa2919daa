"""200 sessions at work while 10 times as many knock as could be admitted: how long their messages take.

Each of the 200 sends 10 messages a second. If sessions last 10 s, 20 new ones a second have places; 200 arrive. Whoever is
admitted works as the others do, which the server can bear for about two seconds.
"""

from contextlib import contextmanager

from .harness.apps import PLACES
from .harness.live import served
from .harness.paired import Comparison
from .harness.suite import Benchmark

IDLE = "gate, nobody knocks"
MESSAGES, ARRIVALS = 10, 200
"""A second: of each session, and of new ones."""

SUBJECTS = {
    IDLE: ("gated_by_close", 0, "", ()),
    "gate, by close": ("gated_by_close", ARRIVALS, 1013, ()),
    "gate, by http": ("gated_by_http", ARRIVALS, 503, ()),
    "ungated": ("bare_work", ARRIVALS, "open", ()),
    "uvicorn --limit-concurrency": ("bare_work", ARRIVALS, "open", ("--limit-concurrency", str(PLACES))),
}
BENCHMARK = Benchmark(
    f"{PLACES} sessions at work while {ARRIVALS} handshakes a second arrive, beside the same when none does",
    [
        *(
            Comparison("p99 ms", name, IDLE, most=1.5 if name.startswith("gate") else None)
            for name in SUBJECTS
            if name != IDLE
        ),
        *(Comparison("answered/s", name, IDLE) for name in SUBJECTS if name != IDLE),
    ],
)


def _register(name, app, arrivals, outcome, options):
    @BENCHMARK.subject(name)
    @contextmanager
    def subject(run):
        run.needs_files(PLACES + 10 * ARRIVALS)
        seconds = run.size(20, 3) / 10  # not less: half a second's messages are a hundred
        with served(run, app, *options) as server:
            run.load.open(name, server.url, PLACES)

            def turn():
                with server.spending(run) as spent:
                    seen = run.load.overload(name, server.url, seconds, MESSAGES, arrivals)
                server.settle()
                outcomes = seen["outcomes"]
                assert outcomes.keys() <= {outcome, "unanswered"}, f"not all clients saw {outcome}: {outcomes}"
                assert sum(outcomes.values()) == int(arrivals * seconds)
                return {
                    "p99 ms": seen["p99"],
                    "answered/s": seen["count"] / seen["seconds"],
                    "server busy": spent.seconds / seen["seconds"],
                }

            yield turn
            assert run.load.close(name) == {"open": PLACES}


for name, how in SUBJECTS.items():
    _register(name, *how)
