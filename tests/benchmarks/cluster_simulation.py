"""A day of a cluster in minutes: ``python -m tests.benchmarks.cluster_simulation [--workers 10000] [--out FOLDER]``.

Each worker has the lease of the library, the store is the model of ``sync.lua`` (``cluster_model``, which a test holds
to the script). Load comes and goes as on a day; all workers are restarted one after another; a third of them dies at
once, and their clients come to the others; the store is away, for less and for longer than the ttl. It prints, and
plots, how full the cluster is at saturation, who was refused although there was room, and by how much the limit was
passed.

A refusal is false where more than 2 % of what can be had was free. That is the limit, less what dead workers hold until
their ttl has passed; and 80 % of it while the store is away for longer than the leases last (fallback "share").
"""

import argparse
import math
import pathlib
import time

import numpy as np

from asgi_closecodes.gates.cluster.lease import MARGIN, SHARE, Lease

from .cluster_model import Model

TTL = 30.0
STEP = 0.5
"""Seconds of the simulation."""
LENGTH = 600.0
"""Mean seconds of a session."""
ROOM = 0.02
"""Share of what can be had that may be free where a refusal is not false."""


class Simulation:
    """So many workers, and sessions as numbers."""

    def __init__(self, workers, limit, *, fallback="share", seed=1):
        self.random = np.random.default_rng(seed)
        self.limit = limit
        self.fallback = fallback
        self.now = 1000.0
        self.store = Model()
        self.is_away = False
        self.away_since = math.inf
        self.dead, self.dead_until = 0, 0.0
        """Places of the dead, and when they return."""
        self.leases = [self.lease() for _ in range(workers)]
        self.used = np.zeros(workers, dtype=np.int64)
        self.alive = np.ones(workers, dtype=bool)
        self.missed = np.zeros(workers, dtype=np.int64)
        self.due = self.now + self.random.uniform(0, TTL / 3, workers)
        self.admitted = self.arrived = self.refused = self.false = self.syncs = 0
        self.overshoot = 0
        self.series = []

    def lease(self):
        return Lease(
            self.limit,
            TTL,
            self.fallback,
            clock=lambda: self.now,
            jitter=lambda low, high: self.random.uniform(low, high),
        )

    def step(self, arrivals_per_second):
        """Let ``STEP`` seconds pass: sessions end, come, and the workers whose sync is due make it."""
        self.now += STEP
        self.used -= self.random.binomial(self.used, 1 - np.exp(-STEP / LENGTH))
        alive = np.flatnonzero(self.alive)
        coming = np.zeros(len(self.used), dtype=np.int64)
        coming[alive] = self.random.poisson(arrivals_per_second * STEP / len(alive), len(alive))
        self.arrived += int(coming.sum())
        waiting = self.admit(coming)
        # Who has somebody waiting, or something to give back, syncs as soon as its pace allows.
        for index in np.flatnonzero(self.alive & ((waiting > 0) | (self.due <= self.now))):
            self.sync(index, int(waiting[index]))
        waiting -= self.taken(waiting)
        refused = int(waiting.sum())
        self.refused += refused
        for index in np.flatnonzero(waiting):
            for _ in range(min(int(waiting[index]), 64)):
                self.leases[index].miss()
        total = int(self.used[self.alive].sum())
        capacity = self.capacity()
        if total < capacity * (1 - ROOM):
            self.false += refused
        self.overshoot = max(self.overshoot, total - self.limit)
        self.series.append((self.now - 1000, total / self.limit, refused / STEP, self.syncs, total / capacity))

    def capacity(self):
        """What can be had at this moment."""
        share = SHARE if self.now - self.away_since > TTL * MARGIN else 1
        return self.limit * share - (self.dead if self.now < self.dead_until else 0)

    def away(self):
        self.is_away, self.away_since = True, self.now

    def back(self):
        self.is_away, self.away_since = False, math.inf

    def admit(self, coming):
        """Admit by the leases; return who is left."""
        room = np.fromiter(map(self.room, self.leases, self.used), dtype=np.int64, count=len(self.used))
        taken = np.minimum(coming, np.maximum(room, 0))
        self.used += taken
        self.admitted += int(taken.sum())
        for index in np.flatnonzero(taken):
            self.leases[index]._admitted += int(taken[index])
        return coming - taken

    def room(self, lease, used):
        if self.now < lease.ends and not lease._is_adrift:
            return lease.quota - int(used)
        if lease._drifts(self.now):
            return int(min(lease._share(), 2**40)) - int(used)
        return 0

    def taken(self, waiting):
        left = self.admit(waiting)
        return waiting - left

    def sync(self, index, waiting):
        lease = self.leases[index]
        lease.used, lease.waiting = int(self.used[index]), waiting
        if lease.wait() > 0:
            lease.waiting = 0
            self.due[index] = self.now + lease.wait()
            return
        request = lease.ask()
        lease.waiting = 0
        self.syncs += 1
        if self.is_away:
            lease.fail()
        else:
            lease.answer(self.store.sync(request, round(self.now * 1000)))
        self.due[index] = self.now + lease.wait()

    def kill(self, which):
        self.dead, self.dead_until = int(sum(self.leases[index].quota for index in which)), self.now + TTL + 2
        self.alive[which] = False
        self.used[which] = 0

    def restart(self, index, *, leave=True):
        """Replace a worker by a new one; its sessions end, and their clients come back."""
        if leave and not self.is_away:
            lease = self.leases[index]
            lease.used = 0
            self.store.sync(lease.ask(leave=True), round(self.now * 1000))
        self.leases[index] = self.lease()
        self.used[index] = 0
        self.alive[index] = True
        self.due[index] = self.now


def diurnal(simulation, seconds, peak):
    for number in range(int(seconds / STEP)):
        simulation.step(peak * (0.55 - 0.5 * np.cos(2 * np.pi * number * STEP / seconds)))


def steady(simulation, seconds, rate):
    for _ in range(int(seconds / STEP)):
        simulation.step(rate)


def a_day(simulation, rate):
    diurnal(simulation, 3600, rate * 1.3)


def a_rolling_deploy(simulation, rate):
    warm(simulation)
    count = len(simulation.used)
    steps = int(900 / STEP)
    come_back = 0.0
    for number in range(steps):
        restarted = range(number * count // steps, (number + 1) * count // steps)
        come_back += float(simulation.used[list(restarted)].sum())
        for index in restarted:
            simulation.restart(index)
        back = come_back * STEP / 30
        come_back -= back
        simulation.step(rate + back / STEP)
    steady(simulation, 300, rate)


def a_region_lost(simulation, rate):
    warm(simulation)
    steady(simulation, 60, rate * 1.05)
    third = np.arange(len(simulation.used) // 3)
    lost = float(simulation.used[third].sum())
    simulation.kill(third)
    for _ in range(int(600 / STEP)):
        back = lost * STEP / 30
        lost -= back
        simulation.step(rate * 1.05 + back / STEP)


def a_short_outage(simulation, rate):
    warm(simulation)
    steady(simulation, 60, rate * 0.9)
    simulation.away()
    steady(simulation, 20, rate * 0.9)
    simulation.back()
    steady(simulation, 200, rate * 0.9)


def a_long_outage(simulation, rate):
    a_short_outage(simulation, rate)
    simulation.away()
    steady(simulation, 120, rate * 0.9)
    simulation.back()
    steady(simulation, 200, rate * 0.9)


def warm(simulation):
    """Begin where a cluster is after hours: as full as the load fills it."""
    target = int(0.88 * simulation.limit / len(simulation.used))
    for index in range(len(simulation.used)):
        lease = simulation.leases[index]
        lease.used, lease.waiting = 0, target
        lease.answer(simulation.store.sync(lease.ask(), round(simulation.now * 1000)))
        lease.waiting = 0
        simulation.used[index] = min(target, lease.quota)
    steady(simulation, 30, 0.9 * simulation.limit / LENGTH)
    simulation.arrived = simulation.refused = simulation.false = simulation.overshoot = 0


SCENARIOS = (a_day, a_rolling_deploy, a_region_lost, a_short_outage, a_long_outage)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=1_000, help="a worker, when the cluster is full")
    parser.add_argument("--out", type=pathlib.Path, help="a folder for the plots")
    parser.add_argument("--only", choices=[scenario.__name__ for scenario in SCENARIOS])
    options = parser.parse_args()
    limit = options.workers * options.sessions
    for scenario in SCENARIOS:
        if options.only not in {None, scenario.__name__}:
            continue
        start = time.monotonic()
        simulation = Simulation(options.workers, limit)
        scenario(simulation, limit / LENGTH)
        full = [use for _, _, refused, _, use in simulation.series if refused > 0.01 * limit / LENGTH]
        print(
            f"{scenario.__name__.replace('_', ' '):18} {simulation.arrived / 1e6:6.1f} million sessions came; "
            f"utilisation at saturation {np.mean(full) if full else float('nan'):.2%}; refused "
            f"{simulation.refused / simulation.arrived:.2%}, falsely {simulation.false / simulation.arrived:.3%}; "
            f"overshoot {max(simulation.overshoot, 0)}; {simulation.syncs} syncs; {time.monotonic() - start:.0f} s",
            flush=True,
        )
        if options.out is not None:
            plot(scenario.__name__, simulation, options.out)


def plot(name, simulation, folder):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    seconds, use, refused, syncs, _ = (np.array(column) for column in zip(*simulation.series, strict=True))
    figure, axes = plt.subplots(3, sharex=True, figsize=(9, 7))
    axes[0].plot(seconds / 60, use * 100)
    axes[0].axhline(100, color="gray", linestyle=":")
    axes[0].set_ylabel("open sessions, % of the limit")
    axes[1].plot(seconds / 60, refused)
    axes[1].set_ylabel("refused a second")
    axes[2].plot(seconds[1:] / 60, np.diff(syncs) / STEP)
    axes[2].set_ylabel("syncs a second")
    axes[2].set_xlabel("minutes")
    axes[0].set_title(f"{name.replace('_', ' ')}: {len(simulation.used)} workers, limit {simulation.limit}")
    figure.tight_layout()
    figure.savefig(folder / f"{name}.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
