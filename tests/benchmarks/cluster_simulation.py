"""A day of a cluster in minutes: ``python -m tests.benchmarks.cluster_simulation [--workers 10000] [--out FOLDER]``.

Each worker has the lease of the library, the store is the model of ``sync.lua`` (``cluster_model``, which a test holds
to the script). Load comes and goes as on a day; all workers are restarted one after another; a third of them dies at
once, and their clients come to the others; the store is away, for less and for longer than the lease_duration. It prints, and
plots, how full the cluster is at saturation, who was refused although there was room, and by how much the limit was
passed.

What can be had is the limit, less what dead workers hold until their lease_duration has passed. A refusal is false where more than
2 % of that was free. Those by the fallback, where a worker's lease had ended as the store was away, are told apart.
"""

import argparse
import pathlib
import time

import numpy as np

from asgi_closecodes.gates.cluster.lease import Lease
from asgi_closecodes.gates.cluster.sessions import PERMIT_TIMEOUT_S

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
        self.leases = [self.lease() for _ in range(workers)]
        self.used = np.zeros(workers, dtype=np.int64)
        self.waiting = np.zeros((workers, round(PERMIT_TIMEOUT_S / STEP)), dtype=np.int64)
        """Sessions that wait for a place, by the time that they have left."""
        self.alive = np.ones(workers, dtype=bool)
        self.dead = np.zeros((0, 2))
        """Of each dead worker: when its places return, and how many."""
        self.due = self.now + self.random.uniform(0, TTL / 3, workers)
        self.begin()

    def begin(self):
        """Count from now on."""
        self.began = self.now
        self.arrived = self.refused = self.false = self.by_fallback = self.syncs = self.overshoot = 0
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
        coming -= self.admit(coming[:, np.newaxis])[:, 0]
        impatient = self.waiting[:, 0]
        self.waiting = np.column_stack((self.waiting[:, 1:], coming))
        waiting = self.waiting.sum(axis=1)
        for index in np.flatnonzero(self.alive & ((waiting > 0) | (self.due <= self.now))):
            self.sync(index, int(waiting[index]))
        self.waiting -= self.admit(self.waiting)
        self.count(impatient + self.hopeless())

    def count(self, refused):
        """Count so many refusals of each worker."""
        total, capacity = int(self.used[self.alive].sum()), self.capacity()
        is_false = total < capacity * (1 - ROOM)
        for index in np.flatnonzero(refused):
            lease = self.leases[index]
            lease._shortfall += int(refused[index])
            if is_false and self.now >= lease.ends:
                self.by_fallback += int(refused[index])
            elif is_false:
                self.false += int(refused[index])
        self.refused += int(refused.sum())
        self.overshoot = max(self.overshoot, total - self.limit)
        self.series.append((self.now - self.began, total, capacity, refused.sum() / STEP, self.syncs))

    def at_saturation(self):
        """Return how full it is while at least a hundredth of what ends is refused: of what can be had, of the limit."""
        enough = 0.01 * self.limit / LENGTH
        full = [(use / capacity, use / self.limit) for _, use, capacity, refused, _ in self.series if refused > enough]
        return np.mean(full, axis=0) if full else (np.nan, np.nan)

    def capacity(self):
        """What can be had at this moment."""
        until, places = self.dead.T
        return self.limit - places[until > self.now].sum()

    def admit(self, sessions):
        """Admit by the leases, in each row the first ones first; return how many."""
        taken = np.zeros_like(sessions)
        for index in np.flatnonzero(sessions.any(axis=1)):
            lease, used = self.leases[index], int(self.used[index])
            room = self.room(lease, used)
            for column, count in enumerate(sessions[index].tolist()):
                taken[index, column] = admitted = min(count, room)
                room -= admitted
                used += admitted
                lease._admitted += admitted
            self.used[index] = lease.used = used
            self.due[index] = self.now + lease.wait()
        return taken

    def room(self, lease, used):
        most = lease.quota if self.now < lease.ends else 0
        if lease._is_in_fallback(self.now):
            most = max(most, min(lease._share(), self.limit))
        return max(int(most) - used, 0)

    def hopeless(self):
        """Send away those whom the next sync can bring no place; return how many."""
        hopeless = np.zeros(len(self.used), dtype=np.int64)
        for index in np.flatnonzero(self.waiting.any(axis=1)):
            if not self.leases[index].may_wait:
                hopeless[index] = self.waiting[index].sum()
                self.waiting[index] = 0
        return hopeless

    def sync(self, index, waiting):
        lease = self.leases[index]
        lease.used, lease.waiting = int(self.used[index]), waiting
        if lease.wait() <= 0:
            self.syncs += 1
            request = lease.ask()
            if self.is_away:
                lease.fail()
            else:
                lease.answer(self.store.sync(request, round(self.now * 1000)))
        lease.waiting = 0
        self.due[index] = self.now + lease.wait()

    def kill(self, which):
        """Let these workers die; return how many clients they had."""
        records = [self.store.records[self.leases[index].worker] for index in which]
        self.dead = np.array([(expiry / 1000, grant) for grant, *_, expiry in records])
        self.alive[which] = False
        return self.lose(which)

    def restart(self, which):
        """Replace these workers by new ones; return how many clients they had."""
        for index in which:
            lease = self.leases[index]
            lease.used = 0
            self.store.sync(lease.ask(leave=True), round(self.now * 1000))
            self.leases[index] = self.lease()
        self.due[which] = self.now
        return self.lose(which)

    def lose(self, which):
        lost = int(self.used[which].sum() + self.waiting[which].sum())
        self.used[which] = self.waiting[which] = 0
        return lost


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
    lost = 0.0
    for restarted in np.array_split(np.arange(len(simulation.used)), int(900 / STEP)):
        lost += simulation.restart(restarted)
        lost = come_back(simulation, lost, rate)
    steady(simulation, 300, rate)


def a_region_lost(simulation, rate):
    warm(simulation)
    steady(simulation, 60, rate * 1.05)
    lost = simulation.kill(np.arange(len(simulation.used) // 3))
    for _ in range(int(600 / STEP)):
        lost = come_back(simulation, lost, rate * 1.05)


def come_back(simulation, lost, rate):
    """Make a step in which some of the ``lost`` clients come back; return how many are left."""
    back = lost * STEP / 30
    simulation.step(rate + back / STEP)
    return lost - back


def a_short_outage(simulation, rate):
    warm(simulation)
    steady(simulation, 60, rate * 0.9)
    simulation.is_away = True
    steady(simulation, 20, rate * 0.9)
    simulation.is_away = False
    steady(simulation, 200, rate * 0.9)


def a_long_outage(simulation, rate):
    a_short_outage(simulation, rate)
    simulation.is_away = True
    steady(simulation, 120, rate * 0.9)
    simulation.is_away = False
    steady(simulation, 200, rate * 0.9)


def an_outage_when_full(simulation, rate):
    warm(simulation)
    coming = 0.15 * simulation.limit
    for _ in range(int(60 / STEP)):
        coming = come_back(simulation, coming, rate * 1.1)
    simulation.is_away = True
    steady(simulation, 120, rate * 1.1)
    simulation.is_away = False
    steady(simulation, 200, rate * 1.1)


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
    simulation.begin()


SCENARIOS = (a_day, a_rolling_deploy, a_region_lost, a_short_outage, a_long_outage, an_outage_when_full)


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
        had, whole = simulation.at_saturation()
        saturated = (
            "never saturated"
            if np.isnan(had)
            else f"utilisation at saturation {had:.2%} of what can be had, {whole:.2%} of the limit"
        )
        refused, false, by_fallback = (
            count / simulation.arrived for count in (simulation.refused, simulation.false, simulation.by_fallback)
        )
        print(
            f"{scenario.__name__.replace('_', ' '):18} {simulation.arrived / 1e6:6.1f} million sessions came; "
            f"{saturated}; refused {refused:.2%}, "
            f"falsely {false:.3%}, and by the fallback {by_fallback:.3%}; "
            f"overshoot {simulation.overshoot}; {simulation.syncs} syncs; {time.monotonic() - start:.0f} s",
            flush=True,
        )
        if options.out is not None:
            plot(scenario.__name__, simulation, options.out)


def plot(name, simulation, folder):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    seconds, use, capacity, refused, syncs = (np.array(column) for column in zip(*simulation.series, strict=True))
    figure, axes = plt.subplots(3, sharex=True, figsize=(9, 7))
    axes[0].plot(seconds / 60, use / simulation.limit * 100)
    axes[0].plot(seconds / 60, capacity / simulation.limit * 100, color="gray", linestyle=":")
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
