"""Sensors of the process: delay of its event loop, use of its memory, load of its cores.

The background ticker samples a sensor, and every admission reads its value. A value that cannot be read is None, which
refuses nobody; the sensor reports that once.
"""

from __future__ import annotations

import abc
import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

from asgi_closecodes.bounds import is_between
from asgi_closecodes.events import Event, Observer, SensorUnknown
from asgi_closecodes.naming import shown


class Sensor(Protocol):
    """Measure of load that can be too high."""

    @property
    def name(self) -> str:
        """Token for refused clients, as ``cause``."""

    def sample(self) -> None:
        """Read the value anew; called about ten times a second, in the event loop."""

    def value(self) -> float | None:
        """Return the value now, or None if it is unknown."""


@runtime_checkable
class ReportingSensor(Sensor, Protocol):
    """Sensor that reports events."""

    def attach(self, report: Observer) -> None:
        """Report to ``report`` from now on."""


@runtime_checkable
class ForgettingSensor(Sensor, Protocol):
    """Sensor whose samples are out of date after a pause."""

    def stop(self) -> None:
        """Forget the samples: none will be taken for now."""


class LoopLag:
    """Delay of the event loop in seconds.

    The ticker wakes every ``interval`` seconds, or later. Between its samples the time since the last one counts.
    So the first handshake after a stall sees it, even if it runs before the ticker.

    :param interval: seconds between two samples.
    :param half_life: seconds after which a stall counts half.
    :raises ValueError: if one of them is no number of seconds.
    """

    name = "lag"

    def __init__(
        self, interval: float = 0.1, *, half_life: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        for name, seconds in (("interval", interval), ("half_life", half_life)):
            if not (is_between(seconds, 0) and seconds > 0):
                raise ValueError(f"{name}={shown(seconds)}: use a number of seconds above 0")
        self._interval = interval
        self._half_life = half_life
        self._clock = clock
        self._last: float | None = None
        self._lag = 0.0

    def sample(self) -> None:
        """Measure how late this call is."""
        now = self._clock()
        if self._last is not None:
            elapsed = now - self._last
            late = max(elapsed - self._interval, 0.0)
            # Rise at once and fall slowly: a stall counts for some time after it.
            self._lag = max(late, self._lag * 0.5 ** (elapsed / self._half_life))
        self._last = now

    def stop(self) -> None:
        """Forget the last sample: none will be taken for now."""
        self._last = None
        self._lag = 0.0

    def value(self) -> float | None:
        """Return the lag in seconds."""
        last = self._last  # read once: the ticker of another thread may stop meanwhile
        if last is None:
            return None
        return max(self._lag, self._clock() - last - self._interval)


def _nobody(_event: Event) -> None:
    pass


class _Slow(abc.ABC):
    """Sensor that reads files, about once a second."""

    name: str
    INTERVAL = 1.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = -math.inf
        self._value: float | None = None
        self._warned = False
        self._report: Observer = _nobody

    def attach(self, report: Observer) -> None:
        """Report to ``report`` if the sensor cannot be read."""
        self._report = report

    def sample(self) -> None:
        """Read the files, unless they were read within the last second."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self.INTERVAL
        try:
            self._value = self._read()
        except (OSError, ValueError, LookupError) as error:
            self._value = None
            if not self._warned:
                self._warned = True
                self._report(SensorUnknown(self.name, f"{type(error).__name__}: {error}"))

    def stop(self) -> None:
        """Forget the last value: none will be read for now."""
        self._value = None
        self._next = -math.inf

    @abc.abstractmethod
    def _read(self) -> float | None:
        """Return the value now; None if it is unknown."""

    def value(self) -> float | None:
        """Return the value that was read last."""
        return self._value


class Memory(_Slow):
    """Used share of the memory that this process may use.

    It is measured against the tightest limit of its cgroup and of their parents (version 2: ``memory.max`` and
    ``memory.high``; version 1: ``memory.limit_in_bytes``). Page cache that the kernel can reclaim does not count.
    Without such a limit, it is the resident memory of this process over the machine's memory (psutil).

    :param limit: bytes to compare this process's resident memory with, instead of the cgroup's limit.
    :param root: where ``/proc`` and ``/sys`` are.
    """

    name = "memory"

    def __init__(
        self, limit: int | None = None, *, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(clock)
        if limit is not None and not is_between(limit, 1):
            raise ValueError(f"limit={shown(limit)}: use a number of bytes above 0, or None for the cgroup's limit")
        self.limit = limit
        self._root = root

    @property
    def is_readable(self) -> bool:
        """Whether it can be read here: without psutil only a cgroup's limit will do."""
        return importlib.util.find_spec("psutil") is not None or (self.limit is None and bool(self._shares()))

    def _shares(self) -> list[float]:
        return [*self._shares_v2(), *self._shares_v1()]

    def _read(self) -> float:
        if self.limit is not None:
            return _resident() / self.limit
        shares = self._shares()
        return max(shares) if shares else _resident() / _physical()

    def _shares_v2(self) -> Iterator[float]:
        for group in _cgroups(self._root, ""):
            limits = [_number(group / name) for name in ("memory.max", "memory.high")]
            limit = min((limit for limit in limits if limit is not None), default=None)
            if limit is None:
                continue
            stat = _table(group / "memory.stat")
            current = _number(group / "memory.current")
            if current is not None:
                used = max(current - stat.get("inactive_file", 0), stat.get("anon", 0))
                yield used / limit if limit else math.inf

    def _shares_v1(self) -> Iterator[float]:
        for group in _cgroups(self._root, "memory"):
            limit = _number(group / "memory.limit_in_bytes")
            if not limit or limit >= 1 << 60:  # no limit is the largest multiple of a page
                continue
            stat = _table(group / "memory.stat")
            usage = _number(group / "memory.usage_in_bytes")
            if usage is not None:
                used = max(usage - stat.get("total_inactive_file", 0), stat.get("total_rss", 0))
                yield used / limit


class Cpu(_Slow):
    """Share of time in which this process lacks a core.

    The first of these that is available:

    * with a CPU quota: share of scheduling periods in which its cgroup was throttled;
    * pressure stall information: share of the last 10 s in which some task waited for a core;
    * processor time of this process as a share of the cores that it may use.

    :param root: where ``/proc`` and ``/sys`` are.
    """

    name = "cpu"

    def __init__(self, *, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._root = root
        self._periods: tuple[int, int] | None = None
        self._used: tuple[float, float] | None = None

    def _read(self) -> float | None:
        groups = list(_cgroups(self._root, ""))
        for group in (*groups, *_cgroups(self._root, "cpu")):
            stat = _table(group / "cpu.stat")
            if stat.get("nr_periods"):
                return self._throttled(stat["nr_periods"], stat.get("nr_throttled", 0))
        for file in (*(group / "cpu.pressure" for group in groups), self._root / "proc/pressure/cpu"):
            if file.exists() and (waiting := _pressure(file)) is not None:
                return waiting
        return self._busy()

    def _throttled(self, periods: int, throttled: int) -> float | None:
        before, self._periods = self._periods, (periods, throttled)
        if before is None:
            return None
        elapsed = periods - before[0]
        return (throttled - before[1]) / elapsed if elapsed > 0 else 0.0

    def _busy(self) -> float | None:
        now, used = self._clock(), time.process_time()
        before, self._used = self._used, (now, used)
        if before is None or now <= before[0]:
            return None
        return (used - before[1]) / (now - before[0]) / _cores()


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of this process's cgroup and of its parents; controller "" is version 2."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controllers if controller else "")
        if not mount.exists():
            mount = root / "sys/fs/cgroup" / controller
        own = mount / path.strip().lstrip("/")
        # In a container the path may be the host's, of which only the root exists here.
        while own.is_relative_to(mount):
            if own.exists():
                yield own
            if own == mount:
                break
            own = own.parent


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _number(file: Path) -> int | None:
    """Return the number in ``file``; None without such a file, and for no limit."""
    lines = _lines(file)
    return None if not lines or lines[0].strip() == "max" else int(lines[0])


def _table(file: Path) -> dict[str, int]:
    return {name: int(number) for name, _, number in (line.partition(" ") for line in _lines(file))}


def _pressure(file: Path) -> float | None:
    for line in _lines(file):
        if line.startswith("some "):
            return float(line.split("avg10=", 1)[1].split()[0]) / 100
    return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resident() -> int:
    return int(_psutil().Process().memory_info().rss)


def _physical() -> int:
    return int(_psutil().virtual_memory().total)


def _psutil() -> ModuleType:
    try:
        import psutil  # noqa: PLC0415 - an extra
    except ImportError:
        raise LookupError("install asgi-closecodes[pressure]") from None
    else:
        return psutil
