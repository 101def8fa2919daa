"""What a session takes in instructions, in this process and without a server: hardly any spread, on a busy machine too.

Python's own build counts: one that was optimized by a profile takes about an eighth less.
"""

from contextlib import contextmanager

from .harness.paired import Comparison
from .harness.sessions import SERVED
from .harness.suite import Benchmark

INSTRUCTIONS = "instructions a session"


def _over(subject, beside, most):
    return Comparison(INSTRUCTIONS, subject, beside, by="difference", most=most)


BENCHMARK = Benchmark(
    "Instructions that a session takes, over the application alone, or over what refuses by hand (hint, counts, time-out, log window)",
    [
        _over("no limit", "bare", 70_000),
        _over("max_sessions", "bare", 75_000),
        _over("refused by 1013", "1013 by hand", 110_000),
        _over("refused by HTTP 503", "HTTP 503 by hand", 125_000),
        _over("crash in a storm", "bare crash", 170_000),
    ],
    pairs=7,
    warms_up=False,
)

TODAY = {
    "no limit": 66_500,
    "max_sessions": 76_000,
    "refused by 1013": 118_000,
    "refused by HTTP 503": 116_000,
    "crash in a storm": 168_000,
}
"""What each comparison was when this was written; tests allow a fifth more. Who makes one less lowers it."""


def _register(name):
    @BENCHMARK.subject(name)
    @contextmanager
    def subject(run):
        counter = run.counter
        yield lambda: {INSTRUCTIONS: counter.each(name)}


for served in SERVED:
    _register(served)
