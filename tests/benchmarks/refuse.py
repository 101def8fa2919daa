"""Refusals a second on live uvicorn, beside an application that does the same by hand."""

from contextlib import contextmanager

from .harness.live import knocked, served
from .harness.paired import Comparison
from .harness.suite import Benchmark

CLOSE, HTTP = "refusals by 1013", "refusals by HTTP 503"
ASKING = "1013 by hand where the gates refuse"
BENCHMARK = Benchmark(
    "Refusals on live uvicorn: accepted and closed with 1013, or answered with HTTP 503",
    [
        Comparison("a second", CLOSE, "1013 by hand", least=0.86),
        Comparison("server us", "1013 by hand"),
        Comparison("server us", CLOSE, "1013 by hand"),
        Comparison("server us", CLOSE, "1013 by hand", by="difference"),
        Comparison("server us", CLOSE, "1013 by hand, logged"),
        # Where the limit is: of what asks the same gates, and does the rest by hand.
        Comparison("a second", ASKING, "1013 by hand"),
        Comparison("server us", ASKING, "1013 by hand", by="difference"),
        Comparison("a second", HTTP, "HTTP 503 by hand", least=0.86),
        Comparison("server us", HTTP, "HTTP 503 by hand"),
        Comparison("a second", HTTP, "uvicorn's 403"),
    ],
)


def _register(name, app, outcome):
    @BENCHMARK.subject(name)
    @contextmanager
    def subject(run):
        with served(run, app) as server:
            yield lambda: knocked(run, server, outcome)


_register(CLOSE, "closing", 1013)
_register("1013 by hand", "refuse_by_hand", 1013)
_register("1013 by hand, logged", "refuse_told_by_hand", 1013)
_register(ASKING, "refuse_where_full", 1013)
_register(HTTP, "denying", 503)
_register("HTTP 503 by hand", "deny_by_hand", 503)
_register("uvicorn's 403", "reject_by_hand", 403)
