"""Metrics for Prometheus: an observer that keeps its numbers in a registry of prometheus_client.

In that library's multiprocess mode too, where nobody can be asked for a number: so the gauges are written down by the
guard's background ticker, and once more whenever the registry is collected.
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
    """Counts in metrics whose names begin with ``closecodes_``: ``Guard(observers=[PrometheusObserver()])``.

    All guards of a process may share one.

    :param registry: where the metrics are registered, by default prometheus_client's own.
    :raises ValueError: if they are in the registry already.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        super().__init__()
        _forget_the_dead()
        families = {metric: _family(metric) for metric in METRICS}
        registry.register(self)  # the first, so that it is collected before the gauges that it sets
        try:
            for family in families.values():
                registry.register(family)
        except ValueError as error:
            registry.unregister(self)
            raise ValueError(
                "closecodes_ metrics are in this registry already: share one PrometheusObserver among all guards, "
                "or give each a registry= of its own"
            ) from error
        self._families = families
        self._children: dict[tuple[Metric, Labels], Any] = {}
        for metric in METRICS:
            for labels in metric.known:
                self._child(metric, labels)
        self.sample()  # none shows 0 where that says something else

    def _child(self, metric: Metric, labels: Labels) -> Any:
        # Asking the family each time costs three times as much as counting.
        child = self._children.get((metric, labels))
        if child is None:
            family = self._families[metric]
            child = self._children[metric, labels] = family.labels(*labels) if labels else family
        return child

    def _add(self, metric: Metric, labels: Labels, amount: float = 1) -> None:
        self._child(metric, labels).inc(amount)

    def _disown(self, metric: Metric, labels: Labels, _amount: float) -> None:
        self._child(metric, labels).set(0)  # in multiprocess mode a child process begins with files of its own

    def _record(self, metric: Metric, labels: Labels, value: float) -> None:
        self._child(metric, labels).observe(value)

    def sample(self) -> None:
        """Set the gauges to what they show now."""
        for metric, labels, value in self._gauges():
            self._child(metric, labels).set(value)

    def collect(self) -> Iterable[Family]:
        """Set the gauges, which the registry is about to collect."""
        self.sample()
        return ()

    def describe(self) -> Iterable[Family]:
        """Say that there is nothing to collect here."""
        return ()


_MODES: dict[str, Literal["livesum", "livemax", "livemin"]] = {"sum": "livesum", "max": "livemax", "min": "livemin"}


def _family(metric: Metric) -> Counter | Gauge | Histogram:
    match metric.kind:
        case "counter":
            return Counter(metric.name, metric.description, metric.labels, registry=None)
        case "histogram":
            return Histogram(metric.name, metric.description, metric.labels, registry=None, buckets=metric.buckets)
        case _:
            # Of several processes: the sessions of all, and the gate, the lag and the drain of the worst one.
            mode = _MODES[metric.of_several]
            return Gauge(metric.name, metric.description, metric.labels, registry=None, multiprocess_mode=mode)


def _forget_the_dead() -> None:
    """In multiprocess mode, take killed processes out of the sums: their sessions are over.

    Servers that start another worker in place of one that died, as uvicorn does, have no hook in which
    the application could do it.
    """
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory is None or os.name != "posix":
        return
    for file in Path(directory).glob("gauge_live*_*.db"):
        process = file.stem.rpartition("_")[2]
        if process.isdigit() and not _is_alive(int(process)):
            with contextlib.suppress(FileNotFoundError):  # another worker that starts does the same
                mark_process_dead(int(process), directory)  # type: ignore[no-untyped-call]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True
