"""Prometheus observer: metrics in a registry of prometheus_client.

Its multiprocess mode cannot read gauges on demand. So the guard's background ticker writes them, and each collection
of the registry does too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from .metrics import METRICS, Labels, Metric, MetricsObserver

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client import Metric as Family
    from prometheus_client.multiprocess import mark_process_dead
except ImportError as error:
    raise ImportError(
        "asgi_closecodes.telemetry.prometheus needs prometheus-client: pip install 'asgi-closecodes[prometheus]'"
    ) from error

__all__ = ["PrometheusObserver"]


class PrometheusObserver(MetricsObserver):
    """Record metrics named ``closecodes_*``: ``Guard(observers=[PrometheusObserver()])``.

    All guards of a process may share one observer.

    :param registry: registry of the metrics, prometheus_client's own by default.
    :raises ValueError: if the registry has these metrics already.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        super().__init__()
        _remove_dead_processes()
        families = {metric: _family(metric) for metric in METRICS}
        registry.register(self)  # first: it is collected before the gauges that it sets
        try:
            for family in families.values():
                registry.register(family)
        except ValueError as error:
            registry.unregister(self)
            raise ValueError(
                "the registry has closecodes_ metrics already: share one PrometheusObserver among all guards, "
                "or give each its own registry="
            ) from error
        self._families = families
        self._children: dict[tuple[Metric, Labels], Any] = {}
        for metric in METRICS:
            for labels in metric.known:
                self._child(metric, labels)
        self.sample()  # none shows 0 where that says something else

    def _child(self, metric: Metric, labels: Labels) -> Any:
        # Cached: family.labels() costs three times as much as counting.
        child = self._children.get((metric, labels))
        if child is None:
            family = self._families[metric]
            child = self._children[metric, labels] = family.labels(*labels) if labels else family
        return child

    def _add(self, metric: Metric, labels: Labels, amount: float = 1) -> None:
        self._child(metric, labels).inc(amount)

    def _subtract(self, metric: Metric, labels: Labels, _amount: float) -> None:
        self._child(metric, labels).set(0)  # in multiprocess mode a child process has its own files

    def _record(self, metric: Metric, labels: Labels, value: float) -> None:
        self._child(metric, labels).observe(value)

    def sample(self) -> None:
        """Set all gauges to their current values."""
        for metric, labels, value in self._gauges():
            self._child(metric, labels).set(value)

    def collect(self) -> Iterable[Family]:
        """Set the gauges before the registry collects them; return no metrics."""
        self.sample()
        return ()

    def describe(self) -> Iterable[Family]:
        """Return no metrics."""
        return ()


_MODES: dict[str, Literal["livesum", "livemax", "livemin"]] = {"sum": "livesum", "max": "livemax", "min": "livemin"}


def _family(metric: Metric) -> Counter | Gauge | Histogram:
    match metric.kind:
        case "counter":
            return Counter(metric.name, metric.description, metric.labels, registry=None)
        case "histogram":
            return Histogram(metric.name, metric.description, metric.labels, registry=None, buckets=metric.buckets)
        case _:
            # Over several processes: add sessions, take the worst gate, lag and drain.
            mode = _MODES[metric.of_several]
            return Gauge(metric.name, metric.description, metric.labels, registry=None, multiprocess_mode=mode)


def _remove_dead_processes() -> None:
    """Remove killed processes from the sums of multiprocess mode: their sessions are over.

    Servers that replace a dead worker, as uvicorn does, have no hook in which the application could do it.
    """
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory is None or os.name != "posix":
        return
    for file in Path(directory).glob("gauge_live*_*.db"):
        process = file.stem.rpartition("_")[2]
        if process.isdigit() and not _is_alive(int(process)):
            with contextlib.suppress(FileNotFoundError):  # another starting worker may remove it
                mark_process_dead(int(process), directory)  # type: ignore[no-untyped-call]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's process
    return True
