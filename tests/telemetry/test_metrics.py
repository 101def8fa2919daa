"""The same numbers from both observers: read as Prometheus reads them, of OpenTelemetry by its exporter."""

import dataclasses
import logging
import random
import string
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from asgi_closecodes import Close, CloseCodeMiddleware, CloseWith, Guard, Settings, events
from asgi_closecodes.bounds import OTHER
from asgi_closecodes.gates import MaxSessionsPerKey, Pressure
from asgi_closecodes.gates.base import as_gate
from asgi_closecodes.logs import messages
from asgi_closecodes.telemetry.metrics import CODES, METRICS, UNKNOWN
from asgi_closecodes.telemetry.opentelemetry import OpenTelemetryObserver
from asgi_closecodes.telemetry.prometheus import PrometheusObserver
from tests.support.asgi import Handler, Peer
from tests.support.every_event import EVENTS, FACTS
from tests.support.fakes import ConnectedClients, FakeSensor, StayingClient, wait_until


class Numbers:
    """What Prometheus would read."""

    def __init__(self, kind):
        self.registry = CollectorRegistry()
        if kind == "prometheus":
            self.observer = PrometheusObserver(self.registry)
        else:
            reader = PrometheusMetricReader(registry=self.registry, disable_target_info=True, scope_info_enabled=False)
            self.provider = MeterProvider([reader], shutdown_on_exit=False)
            self.observer = OpenTelemetryObserver(self.provider)

    def all(self):
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    def __call__(self, name, /, **labels):
        """The value of one series."""
        return self.all().get((f"closecodes_{name}", frozenset(labels.items())))

    def by(self, name, *labels):
        """Those values of a metric that are not 0, by the values of ``labels``."""
        found = Counter()
        for (full, items), value in self.all().items():
            if full == f"closecodes_{name}":
                found[tuple(dict(items)[label] for label in labels)] += value
        return {key[0] if len(labels) == 1 else key: value for key, value in found.items() if value}


@pytest.fixture(params=["prometheus", "opentelemetry"])
def numbers(request, caplog):
    yield Numbers(request.param)
    assert not [record for record in caplog.get_records("call") if record.name.startswith("opentelemetry")]


def routed(handler, template="/rooms/{id}"):
    """``handler``, as behind a router."""

    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path_format=template, param_convertors={"id": None})
        await handler(scope, receive, send)

    return app


# What is counted


@pytest.mark.anyio
async def test_session_from_its_start_to_its_end(numbers):
    guard = Guard(Settings(max_sessions=5), observers=[numbers.observer])
    async with ConnectedClients(guard, routed(Handler())) as stay:
        assert numbers("sessions_active", route=UNKNOWN) == 0
        await stay.come(2)
        await wait_until(lambda: numbers.by("sessions_active", "route") == {"/rooms/{id}": 2})
        assert numbers("sessions_started_total") == 2
        assert numbers("admission_seconds_count", result="admitted") == 2
        assert numbers("gate_usage", gate="max_sessions") == 2
        assert numbers("gate_limit", gate="max_sessions") == 5
        assert not numbers.by("sessions_closed_total", "code")
    assert not numbers.by("sessions_active", "route")
    assert numbers.by("sessions_closed_total", "code", "closed_by") == {("1001", "client"): 2}
    assert numbers.by("session_duration_seconds_count", "outcome") == {"completed": 2}
    assert numbers("gate_usage", gate="max_sessions") == 0
    assert not numbers.by("errors_total", "route")


@pytest.mark.anyio
async def test_session_is_active_before_it_is_accepted(numbers):
    go_on = anyio.Event()

    async def slow(scope, receive, send):
        await go_on.wait()
        await Handler()(scope, receive, send)

    app = CloseCodeMiddleware(routed(slow), Guard(observers=[numbers.observer]))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Peer().visit, app)
        await wait_until(lambda: numbers("sessions_started_total") == 1)
        assert numbers.by("sessions_active", "route") == {UNKNOWN: 1}
        go_on.set()
    assert not numbers.by("sessions_active", "route")


@pytest.mark.anyio
async def test_failures(numbers):
    guard = Guard(Settings(log_burst=1), observers=[numbers.observer])
    for _ in range(5):
        await Peer().visit(CloseCodeMiddleware(routed(Handler(ZeroDivisionError())), guard))
    await Peer().visit(CloseCodeMiddleware(Handler(ExceptionGroup("both", [KeyError(), OSError()])), guard))
    assert numbers.by("errors_total", "route", "error_type", "phase") == {
        ("/rooms/{id}", "ZeroDivisionError", "open"): 5,
        (UNKNOWN, "ExceptionGroup", "open"): 1,
    }
    assert numbers.by("session_duration_seconds_count", "outcome") == {"failed": 6}
    assert numbers.by("sessions_closed_total", "code", "closed_by") == {("1011", "middleware"): 6}
    assert numbers.by("log_suppressed_total", "event") == {"closecodes.session.exception": 4}


@pytest.mark.anyio
async def test_refusals(numbers):
    guard = Guard(Settings(max_sessions=1, max_refusals_per_second=1, shadow=[]), observers=[numbers.observer])
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        guard.update(shadow="max_sessions")
        await stay.come(1)
        expected = {("max_sessions", "full", mode): 1 for mode in ("close", "http", "shadow")}
        await wait_until(lambda: numbers.by("refusals_total", "gate", "cause", "mode") == expected)
        assert numbers("admission_seconds_count", result="refused") == 2
        assert numbers("admission_seconds_count", result="admitted") == 2
        assert numbers("sessions_started_total") == 2
        await guard.drain(0)
        await Peer().visit(stay.app)
        assert numbers("refusals_total", gate="draining", cause="drain", mode="http") == 1
        assert numbers("draining") == 1
        assert numbers.by("overloads_total", "gate", "cause") == {("max_sessions", "full"): 2}, "no shadow, no drain"
    assert numbers.by("session_duration_seconds_count", "outcome") == {"shed": 2}
    assert numbers.by("sessions_closed_total", "code", "closed_by") == {("1012", "middleware"): 2}


def test_closes_that_the_server_did_not_take(numbers):
    numbers.observer(events.CloseFailed(FACTS, Close(1011), None))
    numbers.observer(events.CloseFailed(FACTS, Close(4000), RuntimeError()))
    assert numbers.by("close_failures_total", "code", "cause") == {("1011", "timeout"): 1, ("4xxx", "exception"): 1}


@pytest.mark.parametrize(
    ("close", "label"),
    [
        (Close(1000), "1000"),
        (Close(1007), "other"),
        (Close(3000), "3000"),
        (Close(3003), "3003"),
        (Close(3008), "3008"),
        (Close(3999), "3xxx"),
        (Close(4011), "4xxx"),
        (Close(5000), "other"),
        (Close(-1), "other"),
        (Close(2**70), "other"),
        (Close("1000"), "other"),
        (Close([]), "other"),
        (None, "none"),
    ],
)
def test_codes_are_few(numbers, close, label):
    numbers.observer(events.SessionClosed(FACTS, close, "client"))
    assert numbers.by("sessions_closed_total", "code") == {label: 1}
    assert len(CODES) <= 16


# At 0 from the start


def test_every_label_set_that_is_bounded_is_there_from_the_start(numbers):
    guard = Guard(Settings(max_sessions=5), observers=[numbers.observer])
    there = {(name, tuple(sorted(dict(labels).values()))): value for (name, labels), value in numbers.all().items()}
    for metric in METRICS:
        for labels in metric.known if metric.kind != "histogram" else ():
            assert there[metric.name, tuple(sorted(labels))] == 0
    for code in ("1000", "1011", "1013", "4xxx", "none"):
        for closed_by in ("client", "handler", "middleware"):
            assert numbers("sessions_closed_total", code=code, closed_by=closed_by) == 0
    for mode in ("close", "http", "shadow"):
        assert numbers("refusals_total", gate="max_sessions", cause="full", mode=mode) == 0
    assert numbers("refusals_total", gate="max_loop_lag", cause="lag", mode="close") is None
    guard.update(max_loop_lag=0.5)
    assert numbers("refusals_total", gate="max_loop_lag", cause="lag", mode="close") == 0
    assert numbers("draining") == numbers("event_loop_lag_seconds") == 0


def test_histograms_of_prometheus_too():
    numbers = Numbers("prometheus")
    for outcome in ("completed", "failed", "shed", "not_accepted"):
        assert numbers("session_duration_seconds_count", outcome=outcome) == 0
    for result in ("admitted", "refused"):
        assert numbers("admission_seconds_bucket", result=result, le="0.001") == 0


def test_metrics_of_what_the_logs_may_suppress_are_there():
    [known] = [metric.known for metric in METRICS if metric.name == "closecodes_log_suppressed_total"]
    assert {name for (name,) in known} == {line.name for line in messages.LINES.values() if line.sampler}


# How the gates stand


def test_gates_as_they_are_now(numbers):
    dial, own = FakeSensor(0.25), MaxSessionsPerKey(4)
    guard = Guard(Settings(max_sessions=5), gate=Pressure(dial, 0.5, 0.2), observers=[numbers.observer])
    other = Guard(Settings(max_sessions=1), gate=own, observers=[numbers.observer])

    def shown(name):
        return {gate: value for gate, value in numbers.by(name, "gate").items() if value != float("inf")}

    assert shown("gate_limit") == {"max_sessions": 5, "dial": 0.5, "max_sessions_per_key": 4}
    assert shown("gate_usage") == {"dial": 0.25}
    assert numbers("gate_limit", gate="max_handshakes_in_progress") is None
    other.gate.gates[0].usage = 1  # max_sessions: 1 of 1 is nearer than 0 of 5
    assert shown("gate_limit")["max_sessions"] == shown("gate_usage")["max_sessions"] == 1
    guard.gate.gates[0].usage = 3
    assert shown("gate_usage")["max_sessions"] == 1
    guard.update(max_sessions=2)
    assert (shown("gate_usage")["max_sessions"], shown("gate_limit")["max_sessions"]) == (3, 2)
    dial.shown = None
    assert numbers("gate_usage", gate="dial") == 0
    guard.update(max_loop_lag=1, max_sessions=0)
    assert numbers("gate_limit", gate="max_loop_lag") == 1
    assert numbers("gate_usage", gate="max_loop_lag") is None
    guard.update(max_loop_lag=None)
    assert numbers("gate_limit", gate="max_loop_lag") in {None, float("inf")}
    assert shown("gate_usage")["max_sessions"] == 3
    del other
    assert numbers("draining") == 0


@pytest.mark.anyio
async def test_stall(numbers):
    async with ConnectedClients(Guard(Settings(), observers=[numbers.observer])) as stay:
        await stay.come(1)
        await anyio.sleep(0.15)
        import time

        time.sleep(0.5)
        assert numbers("event_loop_lag_seconds") >= 0.3
        await anyio.sleep(0.3)
        assert numbers("event_loop_lag_seconds") >= 0.3


# Whatever comes


def word(rng):
    return "".join(rng.choices(string.printable + "äß\u2028\u202e\ud800\U0001f600", k=rng.randrange(1, 40)))


def series(numbers):
    """How many series each metric has, its buckets apart."""
    return Counter(name for name, _ in numbers.all() if not name.endswith("_bucket"))


def test_random_paths_codes_and_exception_types_are_few(numbers, monkeypatch):
    # Not to pytest: what it keeps here is no UTF-8, and its processes could not tell each other.
    monkeypatch.setattr(logging.getLogger("asgi_closecodes"), "propagate", False)
    monkeypatch.setattr(logging.getLogger("asgi_closecodes"), "handlers", [logging.NullHandler()])
    rng = random.Random(4)
    guard = Guard(Settings(), observers=[numbers.observer])

    async def app(scope, receive, send):
        await receive()
        if rng.random() < 0.5:  # a router that made a route of everything
            scope["route"] = SimpleNamespace(path_format=scope["path"], param_convertors={})
        await send({"type": "websocket.accept"})
        what = rng.random()
        if what < 0.3:
            raise type(word(rng), (Exception,), {"__module__": word(rng)})(word(rng))
        if what < 0.6:
            raise CloseWith(rng.randrange(-5, 6000))
        await receive()

    class Leaver(Peer):
        async def receive(self):
            message = await super().receive()
            return {**message, "code": rng.randrange(-5, 70000)} if "code" in message else message

    async def main():
        wrapped = CloseCodeMiddleware(app, guard)
        for _ in range(2_000):
            await Leaver(path=word(rng)).visit(wrapped)

    anyio.run(main)
    for metric in METRICS:
        assert all(len(label) <= 128 for name, items in numbers.all() for _, label in items if name == metric.name)
    counts = series(numbers)
    assert counts["closecodes_sessions_active"] <= 66
    assert counts["closecodes_errors_total"] <= 66 * 33
    assert counts["closecodes_sessions_closed_total"] == 16 * 3
    assert sum(counts.values()) < 2500
    assert set(numbers.by("errors_total", "error_type")) >= {OTHER}
    assert len(numbers.by("errors_total", "error_type")) == 33
    assert set(numbers.by("errors_total", "route")) >= {OTHER, UNKNOWN}
    assert not numbers.by("sessions_active", "route")
    closed = sum(numbers.by("sessions_closed_total", "code").values())
    assert closed == numbers("sessions_started_total") == 2_000
    assert sum(numbers.by("errors_total", "phase").values()) == guard.snapshot()["errors"] > 400
    generate_latest(numbers.registry).decode()


def test_causes_and_gates_of_any_number(numbers):
    rng = random.Random(5)
    for _ in range(2_000):
        numbers.observer(events.SessionRefused(FACTS, Close(1013), word(rng), word(rng), 1.0, "close"))
    assert series(numbers)["closecodes_refusals_total"] <= 33 * 33 * 3
    assert sum(numbers.by("refusals_total", "mode").values()) == 2_000
    generate_latest(numbers.registry).decode()


def test_stalls_of_any_number_of_fingerprints(numbers):
    for number in range(100):
        numbers.observer(events.LoopStalled(1.0, f"{number:012x}", 1))
    assert series(numbers)["closecodes_event_loop_stalls_total"] <= 33
    assert sum(numbers.by("event_loop_stalls_total", "fingerprint").values()) == 100


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event_name)
def test_no_event_is_too_much(numbers, event):
    numbers.observer(event)


@pytest.mark.anyio
async def test_active_sessions_whatever_happens_return_to_zero(numbers):
    """600 sessions that are cancelled, crash, are shed, change their route, or end as they should."""
    rng = random.Random(6)
    guard = Guard(Settings(max_sessions=200, max_sessions_per_client=30, shed_grace=0.01), observers=[numbers.observer])

    async def pause():
        for _ in range(rng.randrange(8)):
            await anyio.lowlevel.checkpoint()

    async def handler(scope, receive, send):
        scope["route"] = SimpleNamespace(path_format=f"/{rng.randrange(100)}", param_convertors={})
        await receive()
        await pause()
        if rng.random() < 0.2:
            raise ValueError
        await send({"type": "websocket.accept"})
        scope["route"] = SimpleNamespace(path_format=f"/{rng.randrange(100)}", param_convertors={})
        await pause()
        if rng.random() < 0.2:
            raise ValueError
        while (await receive())["type"] != "websocket.disconnect":
            pass
        await pause()

    app = CloseCodeMiddleware(handler, guard)

    async def visit(number):
        gone = anyio.Event()
        peer = StayingClient(gone, point=pause, client=(f"192.0.2.{number % 20}", 1))
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(peer.visit, app)
                await pause()
                fate = rng.choice(["cancel", "leave", "leave", "shed"])
                if fate == "cancel":
                    scope.cancel()
                elif fate == "shed" and guard.sessions:
                    tasks.start_soon(rng.choice([*guard.sessions]).shed)
                await pause()
                gone.set()

    with anyio.fail_after(600):
        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for number in range(300):
                    tasks.start_soon(visit, number)
                while not guard.sessions:
                    await anyio.lowlevel.checkpoint()
                active = sum(numbers.by("sessions_active", "route").values())
                assert active == len(guard.sessions) == numbers("gate_usage", gate="max_sessions")
    assert not guard.sessions
    assert set(numbers.by("sessions_active", "route").values()) == set()
    assert not numbers.observer._route_of
    started = numbers("sessions_started_total")
    assert started > 200
    assert sum(numbers.by("sessions_closed_total", "code").values()) == started
    outcomes = numbers.by("session_duration_seconds_count", "outcome")
    assert sum(outcomes.values()) == started
    assert set(outcomes) == {"completed", "failed", "shed", "not_accepted"}
    assert sum(numbers.by("errors_total", "route").values()) == outcomes["failed"] == guard.snapshot()["errors"]
    assert sum(numbers.by("refusals_total", "cause").values()) == sum(guard.snapshot()["refusals"].values())


# Names


def test_both_have_the_same_names():
    one, other = ({name for name, _ in numbers.all()} for numbers in map(filled, ["prometheus", "opentelemetry"]))
    assert one == other
    bare = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in one}
    assert bare == {metric.name for metric in METRICS}


SYNCED = events.ClusterSynced(
    name="chat",
    used=3,
    quota=7,
    limit=100,
    cluster_used=40,
    cluster_granted=60,
    workers=4,
    learning=0.0,
    lease=28.5,
    fallback=False,
)


def test_cluster_limit_in_numbers(numbers):
    numbers.observer(SYNCED)
    assert [numbers(f"cluster_{what}", name="chat") for what in ("limit", "used", "quota")] == [100, 3, 7]
    assert numbers("cluster_lease_age_seconds", name="chat") < 10
    assert [numbers(f"cluster_{what}", name="chat") for what in ("learning", "fallback")] == [0, 0]
    assert numbers("cluster_sync_failures_total", name="chat") == 0
    for _ in range(2):
        numbers.observer(events.ClusterSyncFailed("chat", "away"))
    numbers.observer(events.ClusterFallback("chat", "share"))
    assert numbers("cluster_sync_failures_total", name="chat") == 2
    assert numbers("cluster_fallback", name="chat") == 1
    numbers.observer(dataclasses.replace(SYNCED, learning=30.0))
    assert [numbers(f"cluster_{what}", name="chat") for what in ("learning", "fallback")] == [1, 0]


def filled(kind):
    numbers = Numbers(kind)
    guard = Guard(Settings(max_sessions=1), observers=[numbers.observer])
    numbers.guard = guard
    for event in [SYNCED, *EVENTS]:
        numbers.observer(event)
    numbers.observer(events.SessionAdmitted(FACTS))
    return numbers


def test_names_of_opentelemetry_have_dots():
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    guard = Guard(Settings(max_sessions=1), observers=[observer := OpenTelemetryObserver(meter_provider=provider)])
    for event in EVENTS:
        observer(event)
    observer(events.SessionAdmitted(FACTS))
    [resource] = reader.get_metrics_data().resource_metrics
    [scope] = resource.scope_metrics
    assert scope.scope.name == "asgi_closecodes"
    metrics = {metric.name: metric for metric in scope.metrics}
    names = [metric.name.removesuffix("_total").removesuffix("_seconds").replace("_", ".") for metric in METRICS]
    assert sorted(metrics) == sorted(names)
    assert {name.removeprefix("closecodes.") for name, metric in metrics.items() if metric.unit == "s"} == {
        "session.duration",
        "admission",
        "event.loop.lag",
        "cluster.lease.age",
    }
    [error] = metrics["closecodes.errors"].data.data_points
    assert dict(error.attributes) == {"route": "/rooms/{id}", "error.type": "ValueError", "phase": "open"}
    [duration] = metrics["closecodes.session.duration"].data.data_points
    assert 86400 in duration.explicit_bounds
    assert guard


def test_registry_has_room_for_one():
    registry = CollectorRegistry()
    first = PrometheusObserver(registry=registry)
    with pytest.raises(ValueError, match=r"share one PrometheusObserver.*registry="):
        PrometheusObserver(registry=registry)
    first(events.SessionAdmitted(FACTS))
    assert registry.get_sample_value("closecodes_sessions_started_total") == 1


@pytest.mark.parametrize(
    ("module", "needs", "command"),
    [
        ("prometheus", "prometheus_client", "pip install 'asgi-closecodes[prometheus]'"),
        ("opentelemetry", "opentelemetry", "pip install 'asgi-closecodes[opentelemetry]'"),
    ],
)
def test_without_the_extra_the_import_says_what_to_install(module, needs, command):
    code = f"import sys; sys.modules[{needs!r}] = None; import asgi_closecodes.telemetry.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: ")
    assert command in done.stderr.splitlines()[-1]


# For autoscaling


class Full:
    """A gate of one's own, that shows what it is told to."""

    def __init__(self, usage, limit, **rest):
        self.usage, self.limit, self.cause = usage, limit, "mine"
        vars(self).update(rest)

    def admit(self, session):
        raise NotImplementedError


class Broken(Full):
    def __init__(self):
        pass

    @property
    def usage(self):
        raise ValueError

    limit = cause = usage


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("gate", "settings", "room"),
    [
        (None, {}, 1.0),
        (None, {"max_sessions": 8}, 0.75),
        (None, {"max_sessions": 2}, 0.0),
        (None, {"max_sessions": 8, "max_sessions_per_client": 2}, 0.75),
        (None, {"max_sessions": 8, "handshakes_per_second": 100}, 0.75),
        (None, {"max_sessions": 2, "shadow": "max_sessions"}, 1.0),
        (Full(1, 10), {"max_sessions": 8}, 0.75),
        (Full(9, 10), {"max_sessions": 8}, pytest.approx(0.1)),
        (Full(15, 10), {}, -0.5),
        (Full(0, 0), {"max_sessions": 8}, 0.0),
        (Full(None, 10), {"max_sessions": 8}, 0.75),
        (Full(9, None), {"max_sessions": 8}, 0.75),
        (Full(float("nan"), 10), {"max_sessions": 8}, 0.75),
        (Full("many", 10), {"max_sessions": 8}, 0.75),
        (Full(10, 10, is_overload=False), {"max_sessions": 8}, 0.75),
        (Broken(), {"max_sessions": 8}, 0.75),
    ],
)
async def test_headroom_is_the_least_that_is_left(numbers, gate, settings, room):
    guard = Guard(Settings(**settings), observers=[numbers.observer])
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        if gate is not None:
            guard._working_gates += (as_gate(gate, "gate"),)
        assert numbers("headroom") == room


@pytest.mark.anyio
async def test_limit_of_nobody_leaves_no_room(numbers):
    Guard(Settings(max_sessions=8), observers=[numbers.observer])
    guard = Guard(Settings(max_sessions=0), observers=[numbers.observer])
    assert numbers("headroom") == 0.0
    guard.update(max_sessions=5)
    assert numbers("headroom") == 1.0


@pytest.mark.anyio
async def test_wanted_are_the_open_and_those_told_to_come(numbers):
    guard = Guard(Settings(max_sessions=2), observers=[numbers.observer])
    assert numbers("wanted_sessions") == 0
    async with ConnectedClients(guard) as stay:
        await stay.come(5)
        await wait_until(lambda: numbers("wanted_sessions") == 2 + 3)
        guard._queue._clock = lambda: float("inf")
        assert numbers("wanted_sessions") == 2
    assert numbers("wanted_sessions") == 0
