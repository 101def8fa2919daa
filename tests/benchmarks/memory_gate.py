"""2 000 echo sessions with compression on live uvicorn, and a limit of memory 15 % below what the process takes then.

Once as it is, and once with 120 MiB more that the application leaks, which no shedding brings back.
"""

import time
from contextlib import contextmanager

from .harness.live import check_installed, served
from .harness.paired import Comparison
from .harness.suite import Benchmark

APP = "echo_under_memory_pressure"
COMPRESSION = (("Sec-WebSocket-Extensions", "permessage-deflate"),)
SHARE = 0.85
SHED_ABOVE = 1.1
"""The multiple of the limit from which on a size sheds."""

CALM_S = 3
"""Seconds without a shed session after which it is over: the next round would have begun."""

OPEN, TOLD, LONGEST, BACK = "share still open", "said to be futile", "longest turn ms", "MiB given back"
BENCHMARK = Benchmark(
    "Shedding for memory: 2 000 sessions, a limit 15 % below what they take; without and with 120 MiB that are leaked",
    [
        Comparison(OPEN, "limit", least=0.7),
        Comparison(BACK, "limit", least=1),
        Comparison(TOLD, "limit", most=0),
        Comparison(LONGEST, "limit", most=100),
        Comparison(OPEN, "leak", least=0.9),
        Comparison(TOLD, "leak", least=1, most=1),
        Comparison(LONGEST, "leak", most=100),
    ],
    pairs=7,
    warms_up=False,
)


def _calm(server, until, seconds):
    """Return the state once it is as wanted and nobody leaves any more."""
    before, since = None, time.monotonic()
    deadline = since + 120
    while time.monotonic() - since < seconds:
        state = server.ask()
        if state["shed"] != before or not until(state):
            before, since = state["shed"], time.monotonic()
        if since > deadline:
            raise TimeoutError(f"after 2 minutes: {state}")
        time.sleep(0.2)
    return state


def _is_over(state):
    return state["futile"] or state["resident"] < SHED_ABOVE * state["limit"]


def _register(name, leak):
    @BENCHMARK.subject(name)
    @contextmanager
    def subject(run):
        check_installed(APP)
        sessions = run.size(2_000, 200)
        share = run.size(SHARE, 0.905)  # what few sessions take is little beside the process
        calm = run.size(10 * CALM_S, 5) / 10
        run.needs_files(sessions + 100)

        def turn():
            with served(run, APP, forked=False) as server:
                run.load.open(name, server.url, sessions, COMPRESSION)
                start = server.ask(f"share={share}&leak={leak}")["resident"]
                end = _calm(server, _is_over, calm)
                outcomes = run.load.close(name)
                assert outcomes.get("open", 0) + outcomes.get(1013, 0) == sessions, outcomes
                assert outcomes.get(1013, 0) == end["shed"]
            return {
                OPEN: 1 - end["shed"] / sessions,
                BACK: (start - end["resident"]) / 2**20,
                TOLD: end["futile"],
                LONGEST: end["longest"] * 1000,
            }

        yield turn


_register("limit", 0)
_register("leak", 120)
