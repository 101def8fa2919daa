"""A million clients come back to a server that admits 5 000 a second: simulated, with the real gate and with schedules of clients.

All clients lose their sockets within one second, and try again until they are admitted. Time passes in steps of
10 ms; within a step clients come in random order.
"""

import heapq
from collections import Counter
from contextlib import contextmanager

import numpy as np

from asgi_closecodes.exceptions import TryAgainLater
from asgi_closecodes.gates import HandshakeRate

from .harness.paired import Comparison
from .harness.suite import Benchmark

ATTEMPTS, LAST, PEAK = "attempts a client", "last in, of the floor", "peak knocks/s, of the admitted"
HINTED = "hints and back-off"
BENCHMARK = Benchmark(
    "A simulated storm: 1 000 000 clients, 5 000 admitted a second; the floor is 200 s",
    [
        Comparison(ATTEMPTS, HINTED, most=3.5),
        Comparison(LAST, HINTED, most=1.15),
        *(
            Comparison(figure, HINTED, other)
            for other in ("plain doubling", "full jitter", "phoenix.js", "reset on open")
            for figure in (ATTEMPTS, LAST, PEAK)
        ),
    ],
    pairs=7,
    warms_up=False,
)

STEP = 0.01
CAP = 60.0
PHOENIX = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1, 2, 5)
"""Seconds, the last for good: ``reconnectAfterMs`` of phoenix.js."""


class _Server:
    """Admits ``rate`` a second, and a second's worth at once; with ``hints`` by the gate, which tells the others when to come."""

    def __init__(self, rate, *, hints):
        self._now = 0.0
        self._hints = hints
        self._gate = HandshakeRate(rate, ramp=0, cap=CAP, clock=lambda: self._now)

    def admits(self, count, moment):
        """Return how many of ``count`` that come within a step are admitted, and the hints of the others."""
        hints = []
        for number in range(count):
            self._now = moment - STEP * (1 - number / count)
            try:
                self._gate.admit(None)
            except TryAgainLater as refusal:
                hints.append(refusal.retry_after)
                if not self._hints:
                    return number, None  # nobody else of this step
        return count - len(hints), hints or None


def _storm(clients, rate, random, schedule, *, hints=False):
    """Let them come, and return the figures.

    :param schedule: returns the seconds that refused clients wait, of how often each was refused before.
    """
    server = _Server(rate, hints=hints)
    attempts = np.zeros(clients, dtype=np.int32)
    coming, upcoming = {}, []  # who, by step; and the steps, the next one first

    def put(who, when):
        steps = np.ceil(when / STEP).astype(np.int64)
        order = np.argsort(steps, kind="stable")
        who, steps = who[order], steps[order]
        bounds = np.flatnonzero(np.diff(steps)) + 1
        for part, step in zip(np.split(who, bounds), steps[np.r_[0, bounds]].tolist(), strict=True):
            if step not in coming:
                coming[step] = []
                heapq.heappush(upcoming, step)
            coming[step].append(part)

    put(np.arange(clients), random.random(clients))
    admitted, last, knocks = 0, 0.0, Counter()
    while upcoming:
        step = heapq.heappop(upcoming)
        moment = step * STEP
        who = random.permutation(np.concatenate(coming.pop(step)))
        knocks[int(moment)] += len(who)
        room, told = server.admits(len(who), moment)
        refused = who[room:]
        attempts[who] += 1
        if room:
            admitted, last = admitted + room, moment
        if len(refused):
            waits = schedule(random, attempts[refused] - 1)
            put(refused, moment + np.maximum(waits, STEP if told is None else told))
    assert admitted == clients, f"{admitted} of {clients} came in"
    assert attempts.sum() == knocks.total(), "not every attempt is somebody's"
    return {
        ATTEMPTS: float(attempts.mean()),
        LAST: last / (clients / rate),
        PEAK: max(count for second, count in knocks.items() if second > 1) / rate,  # all come in the first
    }


def _subject(name, **how):
    """Register a schedule of clients."""

    def register(schedule):
        @BENCHMARK.subject(name)
        @contextmanager
        def subject(run):
            clients, rate = run.size(1_000_000, 2_000), run.size(5_000, 100)
            random = np.random.default_rng()
            yield lambda: _storm(clients, rate, random, schedule, **how)

        return schedule

    return register


def _doubled(refused, cap):
    return np.minimum(cap, np.exp2(np.minimum(refused, 16)))


@_subject(HINTED, hints=True)
def hinted(random, refused):
    return random.random(len(refused)) * _doubled(refused, CAP)


@_subject("plain doubling")
def doubling(random, refused):
    return _doubled(refused, CAP)


@_subject("full jitter")
def jitter(random, refused):
    return random.random(len(refused)) * _doubled(refused, 30.0)


@_subject("phoenix.js")
def phoenix(random, refused):
    return np.array(PHOENIX)[np.minimum(refused, len(PHOENIX) - 1)]


@_subject("reset on open")
def reset(random, refused):
    return 0.5 + random.random(len(refused)) * 0.5
