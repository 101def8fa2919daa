"""Crashing handlers a second on live servers: what each says to its client, and to its log."""

from contextlib import contextmanager

from .harness.live import UVICORN, knocked, served
from .harness.paired import Comparison
from .harness.suite import Benchmark

LOGGED, STORM, BARE = "1011, every error logged", "1011, in a storm", "bare uvicorn (1006)"
BY_HAND = "except, logger.exception as JSON, close(1011)"
SILENCED, SILENCED_INSIDE = "except, close(1011), no log", "the same behind the middleware"
BENCHMARK = Benchmark(
    "Crashes on live uvicorn: 1011 and a JSON line with the stack trace each, or as many lines as a storm is allowed",
    [
        Comparison("a second", LOGGED, BARE, least=0.9),
        Comparison("server us", LOGGED, BARE),
        Comparison("a second", STORM, BARE, least=1.32),
        Comparison("server us", STORM, BARE),
        Comparison("a second", LOGGED, BY_HAND),
        Comparison("server us", LOGGED, BY_HAND, by="difference"),
        # Where the limits are: of the server, and of a session behind the middleware that ends well.
        Comparison("a second", SILENCED, BARE),
        Comparison("server us", SILENCED, BARE),
        Comparison("a second", SILENCED_INSIDE, BARE),
        Comparison("server us", SILENCED_INSIDE, BARE),
        Comparison("server us", SILENCED_INSIDE, SILENCED, by="difference"),
        Comparison("server us", STORM, SILENCED_INSIDE, by="difference"),
        Comparison("a second", "hypercorn (1011)", BARE),
        Comparison("a second", "websockets' own server (1011)", BARE),
    ],
)


def _register(name, app, outcome, setup=UVICORN):
    @BENCHMARK.subject(name)
    @contextmanager
    def subject(run):
        with served(run, app, setup=setup) as server:
            yield lambda: knocked(run, server, outcome)


_register(LOGGED, "crash_logged", 1011)
_register(STORM, "crash_in_a_storm", 1011)
_register(BY_HAND, "crash_by_hand", 1011)
_register(SILENCED, "silenced_by_hand", 1011)
_register(SILENCED_INSIDE, "crash_silenced_inside", 1011)
_register(BARE, "bare_crash", 1006)
_register("hypercorn (1011)", "bare_crash", 1011, "hypercorn-asyncio")
_register(
    "websockets' own server (1011)", "bare_crash", 1011, "tests.benchmarks.harness.websockets_server {uvicorn_bind}"
)
