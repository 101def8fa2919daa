"""OpenTelemetry observer: metrics, and failures on the current span."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

from asgi_closecodes import events
from asgi_closecodes.error_identity import type_name

from .metrics import METRICS, Labels, Metric, MetricsObserver

try:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter
    from opentelemetry.trace import StatusCode, get_current_span
except ImportError as error:
    raise ImportError(
        "asgi_closecodes.telemetry.opentelemetry needs opentelemetry-api: pip install 'asgi-closecodes[opentelemetry]'"
    ) from error

__all__ = ["OpenTelemetryObserver"]


class OpenTelemetryObserver(MetricsObserver):
    """Record metrics named ``closecodes.*``: ``Guard(observers=[OpenTelemetryObserver()])``.

    The names are those for Prometheus with dots for underscores, without ``_total`` and ``_seconds``. A failure sets
    the status, ``error.type``, ``websocket.close.code`` and ``closecodes.error.id`` of the current span. All guards of
    a process may share one observer.

    :param meter_provider: the global one by default.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        super().__init__()
        meter = get_meter("asgi_closecodes", meter_provider=meter_provider)
        self._instruments = {metric: self._instrument(meter, metric) for metric in METRICS}
        for metric in METRICS:
            if metric.kind in {"counter", "sum"}:
                for labels in metric.known:
                    self._add(metric, labels, 0)

    def __call__(self, event: events.Event) -> None:
        """Update the metrics and the current span."""
        if isinstance(event, events.SessionFailed):
            span = get_current_span()
            # Without the exception, whose text may hold secrets. The log record has it, and the span's id.
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", type_name(type(event.exception)))
            if event.close is not None:
                span.set_attribute("websocket.close.code", int(event.close.code))
            span.set_attribute("closecodes.error.id", event.error_id)
        super().__call__(event)

    def _instrument(self, meter: Meter, metric: Metric) -> Any:
        name = _dotted(metric.name.removesuffix("_total").removesuffix("_seconds"))
        unit = "s" if metric.name.endswith("_seconds") else ""
        match metric.kind:
            case "counter":
                return meter.create_counter(name, unit, metric.description)
            case "sum":
                return meter.create_up_down_counter(name, unit, metric.description)
            case "histogram":
                return meter.create_histogram(
                    name, unit, metric.description, explicit_bucket_boundaries_advisory=metric.buckets
                )
            case "gauge":
                observe = functools.partial(self._observed, metric)
                return meter.create_observable_gauge(name, [observe], unit, metric.description)

    def _observed(self, metric: Metric, _options: CallbackOptions) -> Iterable[Observation]:
        for gauge, labels, value in self._gauges():
            if gauge is metric and math.isfinite(value):
                yield Observation(value, _attributes(metric, labels))

    def _add(self, metric: Metric, labels: Labels, amount: float = 1) -> None:
        self._instruments[metric].add(amount, _attributes(metric, labels))

    def _subtract(self, metric: Metric, labels: Labels, amount: float) -> None:
        self._add(metric, labels, -amount)

    def _record(self, metric: Metric, labels: Labels, value: float) -> None:
        self._instruments[metric].record(value, _attributes(metric, labels))


def _dotted(name: str) -> str:
    return name.replace("_", ".")


def _attributes(metric: Metric, labels: Labels) -> dict[str, str]:
    return dict(zip(map(_dotted, metric.labels), labels, strict=True))
