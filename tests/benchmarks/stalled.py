"""Peers that read nothing on live uvicorn, whose sessions this side ends: what the server holds, and what counts.

The application sends more than sockets hold, and then the sessions are closed: by the guard, or by hand.
"""

import contextlib
import time
from contextlib import contextmanager

from tests.support.peers import Raw, wait_until

from .harness.live import check_installed, served
from .harness.paired import Comparison
from .harness.suite import Benchmark

ABORTED_AFTER_S = 10
"""Seconds after a close at which the middleware drops what its peer does not take."""

HELD, UNCOUNTED = "still held after 13 s", "held and not counted"
BENCHMARK = Benchmark(
    "50 peers that read nothing: connections that the server holds 13 s after their close, and beyond what is counted",
    [
        Comparison(HELD, "closed by the guard", most=0),
        Comparison(UNCOUNTED, "closed by the guard", most=0),
        Comparison(HELD, "closed by hand", least=1),
    ],
    pairs=7,
    warms_up=False,
)


def _register(name, app):
    @BENCHMARK.subject(name)
    @contextmanager
    def subject(run):
        check_installed(app)
        peers = run.size(50, 5)
        wait = run.size(ABORTED_AFTER_S + 1, 0)  # and 2
        second = run.size(10, 2) / 10

        def turn():
            with served(run, app) as server, contextlib.ExitStack() as stack:
                for _ in range(peers):
                    stack.enter_context(contextlib.closing(Raw(server).socket))
                wait_until(lambda: server.ask()["counted"] == peers)
                time.sleep(second)  # until nothing more goes out
                server.ask("end")
                time.sleep(2 * second)  # what can leave does
                uncounted = max(server.connections() - server.ask()["counted"], 0)
                time.sleep(wait)
                return {HELD: server.connections(), UNCOUNTED: uncounted}

        yield turn


_register("closed by the guard", "stalled")
_register("closed by hand", "stalled_by_hand")
