"""Metrics: their definitions, bounded labels, and the changes that events make.

The modules ``prometheus`` and ``opentelemetry`` beside this one store the values.
"""

from __future__ import annotations

import abc
import itertools
import math
import os
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from asgi_closecodes import events
from asgi_closecodes.bounds import FirstOnes
from asgi_closecodes.codes import Close
from asgi_closecodes.error_identity import type_name
from asgi_closecodes.logs.messages import LINES

UNKNOWN = "_UNKNOWN"
"""Label of an unknown route: the handler has not accepted yet, or no route matched."""

MAX_ROUTES = 64
MAX_ERROR_TYPES = 32
MAX_GATES = 32
MAX_CAUSES = 32
MAX_STALLS = 32

Labels: TypeAlias = tuple[str, ...]

_SHOWN_CODES = frozenset({1000, 1001, 1005, 1006, 1008, 1009, 1011, 1012, 1013, 3000, 3003, 3008})
CODES = (*map(str, sorted(_SHOWN_CODES)), "3xxx", "4xxx", "other", "none")
"""Labels of close codes; ``none`` is an HTTP response, or a close that the server does not report."""

_CLOSERS = ("client", "handler", "middleware")
_MODES = ("close", "http", "shadow")


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """Definition of a metric, with its Prometheus name.

    A ``sum`` goes up and down. A ``gauge`` is read on collection.
    """

    kind: Literal["counter", "sum", "gauge", "histogram"]
    name: str
    description: str
    labels: Labels = ()
    known: tuple[Labels, ...] = ()
    """Label values that exist from the start, at 0."""
    buckets: tuple[float, ...] = ()
    of_several: Literal["sum", "max", "min"] = "max"
    """Combination of the gauges of several processes."""


SESSIONS_ACTIVE = Metric(
    "sum",
    "closecodes_sessions_active",
    "Admitted sessions that are not over; route `_UNKNOWN` until the handler accepts.",
    ("route",),
    ((UNKNOWN,),),
    of_several="sum",
)
SESSIONS_LEAVING = Metric(
    "gauge",
    "closecodes_sessions_leaving",
    "Sessions that are ending or have ended, and still count.",
    (),
    ((),),
    of_several="sum",
)
REFUSALS_LEAVING = Metric(
    "gauge",
    "closecodes_refusals_leaving",
    "Refused sessions whose connection the server still holds.",
    (),
    ((),),
    of_several="sum",
)
SESSIONS_ABANDONED = Metric(
    "counter",
    "closecodes_sessions_abandoned_total",
    "Sessions that no longer count, though the server still holds their connection.",
    (),
    ((),),
)
SESSIONS_STARTED = Metric("counter", "closecodes_sessions_started_total", "Admitted sessions.", (), ((),))
SESSION_DURATION = Metric(
    "histogram",
    "closecodes_session_duration_seconds",
    "Time from the handshake to the end of a session, by outcome: "
    "`completed`, `failed`, `shed` (also drained) or `not_accepted`.",
    ("outcome",),
    tuple((outcome,) for outcome in get_args(events.Outcome)),
    buckets=(0.1, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400),
)
SESSIONS_CLOSED = Metric(
    "counter",
    "closecodes_sessions_closed_total",
    "Sessions that are over, by close code (`none` after an HTTP response or an unreported close) and by the side that "
    "ended them: `client`, `handler` or `middleware`.",
    ("code", "closed_by"),
    tuple(itertools.product(CODES, _CLOSERS)),
)
ERRORS = Metric(
    "counter",
    "closecodes_errors_total",
    "Unhandled exceptions of handlers, including suppressed log records, "
    "by phase of the session: `connecting`, `open` or `closed`.",
    ("route", "error_type", "phase"),
)
REFUSALS = Metric(
    "counter",
    "closecodes_refusals_total",
    "Sessions that a gate refused, by mode: `close`, `http`, or `shadow` if it, or a time limit, would have.",
    ("gate", "cause", "mode"),
    tuple(("draining", "drain", mode) for mode in _MODES if mode != "shadow"),
)
OVERLOADS = Metric(
    "counter",
    "closecodes_overloads_total",
    "Refusals by a limit of the process: without shadow, limits of one client, and drains.",
    ("gate", "cause"),
)
GATE_USAGE = Metric("gauge", "closecodes_gate_usage", "Used part of a gate's limit, in its unit.", ("gate",))
GATE_LIMIT = Metric("gauge", "closecodes_gate_limit", "A gate's limit, if it has one.", ("gate",))
ADMISSION = Metric(
    "histogram",
    "closecodes_admission_seconds",
    "Time that the gates took to admit or refuse a session.",
    ("result",),
    (("admitted",), ("refused",)),
    buckets=(0.0001, 0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 10),
)
CLOSE_FAILURES = Metric(
    "counter",
    "closecodes_close_failures_total",
    "Closes that the server did not accept: it raised an `exception`, or a `timeout` passed.",
    ("code", "cause"),
    tuple(itertools.product((code for code in CODES if code != "none"), ("exception", "timeout"))),
)
LOG_SUPPRESSED = Metric(
    "counter",
    "closecodes_log_suppressed_total",
    "Log records that were suppressed.",
    ("event",),
    tuple((line.name,) for line in LINES.values() if line.sampler is not None),
)
LOOP_LAG = Metric(
    "gauge",
    "closecodes_event_loop_lag_seconds",
    "Delay of the event loop; a stall counts half after 15 s.",
    (),
    ((),),
)
LOOP_STALLS = Metric(
    "counter",
    "closecodes_event_loop_stalls_total",
    "Stalls of at least `log_stalls`, by the fingerprint in their log records.",
    ("fingerprint",),
)
DRAINING = Metric("gauge", "closecodes_draining", "1 while draining.", (), ((),))
SESSIONS_STALLED = Metric(
    "gauge",
    "closecodes_sessions_stalled",
    "Open sessions in one send for over 5 s; 0 without `send_timeout`.",
    (),
    ((),),
    of_several="sum",
)
SESSIONS_BUSY = Metric(
    "gauge", "closecodes_sessions_busy", "Open sessions in a block of `session.busy()`.", (), ((),), of_several="sum"
)
SESSIONS_WANTED = Metric(
    "gauge",
    "closecodes_wanted_sessions",
    "Open sessions, and refused ones that were told when to come back and whose turn has not come.",
    (),
    ((),),
    of_several="sum",
)
HEADROOM = Metric(
    "gauge",
    "closecodes_headroom",
    "What is left of the gate that is nearest to its limit, as a share of it; 1 where none has a limit. "
    "Shadows and limits of one client are left out.",
    of_several="min",
)
CLUSTER_LIMIT = Metric("gauge", "closecodes_cluster_limit", "Limit of all processes together.", ("name",))
CLUSTER_USED = Metric(
    "gauge", "closecodes_cluster_used", "Sessions that count in a cluster limit.", ("name",), of_several="sum"
)
CLUSTER_QUOTA = Metric(
    "gauge",
    "closecodes_cluster_quota",
    "Sessions that may be open without asking the store.",
    ("name",),
    of_several="sum",
)
CLUSTER_LEASE_AGE = Metric(
    "gauge", "closecodes_cluster_lease_age_seconds", "Seconds since the lease was granted.", ("name",)
)
CLUSTER_LEARNING = Metric(
    "gauge",
    "closecodes_cluster_learning",
    "1 while the store, which has lost its data, grants nothing more.",
    ("name",),
)
CLUSTER_FALLBACK = Metric(
    "gauge", "closecodes_cluster_fallback", "1 while the fallback is in effect: the lease has ended.", ("name",)
)
CLUSTER_SYNC_FAILURES = Metric(
    "counter", "closecodes_cluster_sync_failures_total", "Syncs with the store that failed.", ("name",)
)

METRICS: tuple[Metric, ...] = tuple(metric for metric in [*vars().values()] if isinstance(metric, Metric))
"""All metrics."""


def code_label(close: Close | None) -> str:
    """Return the label of a close code, one of :data:`CODES`."""
    if close is None:
        return "none"
    if not isinstance(close.code, int):
        return "other"
    if close.code in _SHOWN_CODES:
        return str(int(close.code))
    return f"{close.code // 1000}xxx" if 3000 <= close.code <= 4999 else "other"


class MetricsObserver(abc.ABC):
    """Base class: changes metrics by events, and tracks active sessions."""

    def __init__(self) -> None:
        self._routes = FirstOnes(MAX_ROUTES)
        self._error_types = FirstOnes(MAX_ERROR_TYPES)
        self._gates = FirstOnes(MAX_GATES)
        self._causes = FirstOnes(MAX_CAUSES)
        self._stalls = FirstOnes(MAX_STALLS)
        self._route_of: dict[str, str] = {}
        """Route label of each active session, by id: the same label is decremented later."""
        self._inherited: Counter[str] = Counter()
        """In a child process: the parent's active sessions by route, to be subtracted."""
        _observers.add(self)
        self._sources: list[Callable[[], events.Snapshot | None]] = []
        self._clusters: dict[str, _Cluster] = {}
        self._shown: dict[tuple[Metric, str], None] = {}
        """Gate gauges that were set: they are reset when their gate is gone."""

    @abc.abstractmethod
    def _add(self, metric: Metric, labels: Labels, amount: float = 1) -> None:
        """Add to a counter or a sum."""

    @abc.abstractmethod
    def _subtract(self, metric: Metric, labels: Labels, amount: float) -> None:
        """Subtract what the parent process added."""

    @abc.abstractmethod
    def _record(self, metric: Metric, labels: Labels, value: float) -> None:
        """Record one value in a histogram."""

    def __call__(self, event: events.Event) -> None:
        """Update the metrics."""
        match event:
            case events.SessionAdmitted(session=session):
                self._add(SESSIONS_STARTED, ())
                self._record(ADMISSION, ("admitted",), session.duration)
                self._set_route(session.id, self._route(session))
            case events.SessionOpened(session=session):
                self._set_route(session.id, self._route(session))
            case events.SessionClosed(session=session):
                self._set_route(session.id, None)
                self._add(SESSIONS_CLOSED, (code_label(event.close), event.closed_by))
                self._record(SESSION_DURATION, (event.outcome,), session.duration)
            case events.SessionFailed(session=session):
                error_type = self._error_types(type_name(type(event.exception)))
                self._add(ERRORS, (self._route(session), error_type, session.phase))
            case events.SessionRefused(session=session):
                self._add(REFUSALS, (self._gates(event.gate), self._causes(event.cause), event.mode))
                if event.mode != "shadow":
                    if event.is_overload:
                        self._add(OVERLOADS, (self._gates(event.gate), self._causes(event.cause)))
                    self._record_refusal(session)
            case events.SessionAbandoned():
                self._add(SESSIONS_ABANDONED, ())
            case events.CloseFailed():
                cause = "timeout" if event.exception is None else "exception"
                self._add(CLOSE_FAILURES, (code_label(event.close), cause))
            case events.LoopStalled():
                self._add(LOOP_STALLS, (self._stalls(event.fingerprint),))
            case events.LogsSuppressed():
                self._add(LOG_SUPPRESSED, (event.event,), event.count)
            case events.LimitsChanged():
                self._create_refusal_counters()
            case events.ClusterSynced() | events.ClusterSyncFailed() | events.ClusterFallback():
                self._on_cluster_event(event)

    def _record_refusal(self, session: events.SessionFacts) -> None:
        if session.phase == "connecting":  # else the gates have admitted it long before
            self._record(ADMISSION, ("refused",), session.duration)

    def _on_cluster_event(
        self, event: events.ClusterSynced | events.ClusterSyncFailed | events.ClusterFallback
    ) -> None:
        match event:
            case events.ClusterSynced(name=name):
                self._clusters[name] = _Cluster(event, time.monotonic(), event.fallback)
                self._add(CLUSTER_SYNC_FAILURES, (name,), 0)
            case events.ClusterSyncFailed(name=name):
                self._add(CLUSTER_SYNC_FAILURES, (name,))
            case events.ClusterFallback(name=name) if name in self._clusters:
                self._clusters[name].is_in_fallback = True

    def _route(self, session: events.SessionFacts) -> str:
        return UNKNOWN if session.route is None else self._routes(session.route)

    def reset_after_fork(self) -> None:
        """Mark all counts as the parent's. They are subtracted later: a lock may be held at the fork."""
        self._inherited.update(self._route_of.values())
        self._route_of = {}

    def _subtract_inherited(self) -> None:
        inherited, self._inherited = self._inherited, Counter()
        for route, count in inherited.items():
            self._subtract(SESSIONS_ACTIVE, (route,), count)

    def _set_route(self, session_id: str, route: str | None) -> None:
        if self._inherited:
            self._subtract_inherited()
        before = self._route_of.get(session_id)
        if before == route:
            return
        if before is not None:
            del self._route_of[session_id]
            self._add(SESSIONS_ACTIVE, (before,), -1)
        if route is not None:
            self._route_of[session_id] = route
            self._add(SESSIONS_ACTIVE, (route,))

    # Gauges

    def watch(self, snapshot: Callable[[], events.Snapshot | None]) -> None:
        """Call ``snapshot`` on every read of the gauges. Several guards may share this observer."""
        self._sources.append(snapshot)
        self._create_refusal_counters()

    def _snapshots(self) -> list[events.Snapshot]:
        return [snapshot for source in self._sources if (snapshot := source()) is not None]

    def _create_refusal_counters(self) -> None:
        # Create them at 0: Prometheus sees no increase in a counter that appears with 1.
        for gate in _gates_of(self._snapshots()):
            labels = self._gates(gate["name"]), self._causes(gate["cause"])
            self._add(OVERLOADS, labels, 0)
            for mode in _MODES:
                self._add(REFUSALS, (*labels, mode), 0)

    def _gauges(self) -> Iterator[tuple[Metric, Labels, float]]:
        """Yield the current values of all gauges.

        If several gates share a name, the one nearest to its limit counts.
        """
        self._subtract_inherited()
        snapshots = self._snapshots()
        gates: dict[str, events.GateState] = {}
        for gate in _gates_of(snapshots):
            label = self._gates(gate["name"])
            if label not in gates or _nearness(gate) > _nearness(gates[label]):
                gates[label] = gate
        values = {(GATE_USAGE, label): gate["usage"] for label, gate in gates.items()}
        values |= {(GATE_LIMIT, label): gate["limit"] for label, gate in gates.items()}
        self._shown |= {key: None for key, value in values.items() if value is not None}
        for key in [*self._shown]:
            metric, label = key
            value = values.get(key)
            yield metric, (label,), _WITHOUT_GATE[metric] if value is None else value
        yield LOOP_LAG, (), max((snapshot["loop_lag"] or 0.0 for snapshot in snapshots), default=0.0)
        yield SESSIONS_LEAVING, (), sum(snapshot["leaving"] for snapshot in snapshots)
        yield REFUSALS_LEAVING, (), sum(snapshot["leaving_refused"] for snapshot in snapshots)
        yield DRAINING, (), float(any(snapshot["draining"] for snapshot in snapshots))
        yield SESSIONS_STALLED, (), float(sum(snapshot["stalled"] for snapshot in snapshots))
        yield SESSIONS_BUSY, (), float(sum(snapshot["busy"] for snapshot in snapshots))
        yield SESSIONS_WANTED, (), float(sum(snapshot["open"] + snapshot["waiting"] for snapshot in snapshots))
        rooms = (snapshot["headroom"] for snapshot in snapshots)
        yield HEADROOM, (), min((room for room in rooms if room is not None), default=1.0)
        now = time.monotonic()
        for name, cluster in [*self._clusters.items()]:
            yield CLUSTER_LIMIT, (name,), cluster.synced.limit
            yield CLUSTER_USED, (name,), cluster.synced.used
            yield CLUSTER_QUOTA, (name,), cluster.synced.quota
            yield CLUSTER_LEASE_AGE, (name,), now - cluster.at
            yield CLUSTER_LEARNING, (name,), float(now - cluster.at < cluster.synced.learning)
            yield CLUSTER_FALLBACK, (name,), float(cluster.is_in_fallback)


_observers: weakref.WeakSet[MetricsObserver] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for observer in [*_observers]:
        observer.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


@dataclass(slots=True)
class _Cluster:
    """State of a cluster limit since the last sync."""

    synced: events.ClusterSynced
    at: float
    is_in_fallback: bool


_WITHOUT_GATE = {GATE_USAGE: 0.0, GATE_LIMIT: math.inf}


def _gates_of(snapshots: Iterable[events.Snapshot]) -> Iterator[events.GateState]:
    return (gate for snapshot in snapshots for gate in snapshot["gates"])


def _nearness(gate: events.GateState) -> tuple[float, bool]:
    usage, limit = gate["usage"], gate["limit"]
    if usage is None or limit is None:
        return 0.0, limit is not None
    return usage / limit if limit else math.inf, True
