"""What one process knows: changes while it runs, its snapshot, its observers, and places that are given back."""

import asyncio
import json
import logging
import math
import random
import re
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.lowlevel
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from asgi_closecodes import Close, CloseCodeMiddleware, Guard, Settings, SettingsError, StatusApp, TryAgainLater
from asgi_closecodes.events import (
    CallbackFailed,
    LimitsChanged,
    SessionClosed,
    SessionFailed,
    SessionOpened,
    SessionRefused,
    SessionShed,
)
from asgi_closecodes.gates import LoopLag, MaxSessions, MaxSessionsPerKey, Pressure
from asgi_closecodes.gates.base import NO_PERMIT
from asgi_closecodes.logs import JsonFormatter, LogObserver
from asgi_closecodes.naming import name_of, shown
from asgi_closecodes.telemetry.prometheus import PrometheusObserver
from tests.support.asgi import Handler, Peer, events_of
from tests.support.fakes import Clock, ConnectedClients, FakeSensor, StayingClient, settle, wait_until

pytestmark = pytest.mark.jumping_clock


def gates(guard):
    """The gates of a snapshot by name."""
    return {gate["name"]: gate for gate in guard.snapshot()["gates"]}


# The guard is updated


@pytest.mark.anyio
async def test_new_limit_counts_those_who_came_before_it():
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        await settle()
        guard.update(max_sessions=4)
        await stay.come(2)
        await settle()
        assert len(guard.sessions) == 4
        assert stay.codes() == [None] * 4 + [1013]
        guard.update(max_sessions=None)
        await stay.come(1)
        await settle()
        assert len(guard.sessions) == 5


def in_use(usage, limit, *, shadow=False):
    return {"name": "max_sessions", "cause": "full", "usage": usage, "limit": limit, "shadow": shadow}


@pytest.mark.anyio
async def test_limit_below_use_refuses_until_enough_have_left():
    guard = Guard(Settings(max_sessions=3, max_sessions_per_client=3, shed_order="never"))
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        await settle()
        guard.update(max_sessions=1, max_sessions_per_client=1)
        await anyio.sleep(0.3)  # three turns of the background work
        await stay.come(1)
        await settle()
        assert stay.codes() == [None, None, None, 1013]
        assert gates(guard)["max_sessions"] == in_use(3, 1)
    assert gates(guard)["max_sessions"]["usage"] == 0
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        await settle()
        assert stay.codes() == [None, 1013]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "changes",
    [
        {"max_sessions": 1, "error_code": 1006},
        {"error_code": 4000, "max_sessions": -1},
        {"max_sessions": 1, "shadow": "nonsense", "log_path": "off"},
        {"max_sessions": 1, "max_sesions": 1},
        {"max_sessions": 1, "max_loop_lag": 1e308},  # a number, but the gate takes none whose double is none
        {"max_sessions": 1, "max_memory": "-1MiB"},
    ],
)
async def test_all_changes_are_made_or_none(changes):
    seen = []
    guard = Guard(Settings(max_sessions=5, max_sessions_per_client=4, max_loop_lag=2), observers=[seen.append])
    seen.clear()
    before = guard.settings, guard.rules, guard.snapshot(), guard.gate.gates
    try:
        guard.update(**changes)
    except ValueError:
        assert (guard.settings, guard.rules, guard.snapshot(), guard.gate.gates) == before
        assert seen == []
        async with ConnectedClients(guard) as stay:
            await stay.come(2)
            await settle()
            assert stay.codes() == [None, None]
    else:
        assert changes["max_loop_lag"] == guard.settings.max_loop_lag
        assert gates(guard)["max_sessions"]["limit"] == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"max_sessions": -1}, "max_sessions = -1 .*greater than or equal to 0"),
        ({"max_sessons": 5}, "max_sessons.*did you mean max_sessions\\?"),
        ({"settings": Settings()}, "settings.*no such setting"),
    ],
)
def test_change_that_cannot_be_made_is_explained(changes, problem):
    guard = Guard(Settings())
    with pytest.raises(SettingsError, match=problem):
        guard.update(**changes)
    assert guard.settings == Settings()


def test_update_reports_the_change_and_all_limits(caplog):
    seen = []
    with caplog.at_level(logging.INFO, "asgi_closecodes"):
        guard = Guard(Settings(max_sessions=9), observers=[seen.append])
        guard.update(max_sessions="5", max_memory="1MiB", error_code=4000)
    first, second = events_of(LimitsChanged, seen)
    assert first.changed == {}
    assert first.limits["max_sessions"] == 9
    assert second.changed == {"max_sessions": 5, "max_memory": 2**20, "error_code": 4000}
    assert second.limits == {**first.limits, "max_sessions": 5, "max_memory": 2**20}
    names = [getattr(record, "event.name") for record in caplog.records]
    assert names == ["closecodes.config.limits"] * 2
    assert vars(caplog.records[1])["closecodes.limit.max_sessions"] == 5
    assert "max_sessions=5" in caplog.records[1].getMessage()


def test_environment_is_not_read_again_by_a_change(monkeypatch):
    monkeypatch.setenv("CLOSECODES_MAX_SESSIONS", "9")
    guard = Guard()
    monkeypatch.setenv("CLOSECODES_MAX_SESSIONS", "10")
    monkeypatch.setenv("CLOSECODES_MAX_CPU", "nonsense")
    guard.update(error_code=4000)
    assert gates(guard)["max_sessions"]["limit"] == 9


@pytest.mark.anyio
async def test_every_kind_of_setting_takes_effect_at_once(caplog):
    guard = Guard(Settings(), exceptions={KeyError: 1013})
    crashing = CloseCodeMiddleware(Handler(ValueError("the text")), guard)
    guard.update(error_code=4011, debug=True, log_path="off")
    with caplog.at_level(logging.INFO, "asgi_closecodes"):
        peer = await Peer(path="/here").visit(crashing)
    assert peer.closed[0] == 4011
    assert peer.closed[1].startswith("ValueError: the text; ref=")
    assert not any(hasattr(record, "url.path") for record in caplog.records)
    guard.update(reraise=True)
    with pytest.raises(ValueError, match="the text"):
        await Peer().visit(crashing)
    guard.update(max_sessions=0, try_again_code=4013, reject_with="http", max_retry_after=1)
    assert (await Peer().visit(crashing)).status == 503
    guard.update(reject_with="close")
    peer = await Peer().visit(crashing)
    assert peer.closed[0] == 4013
    assert float(re.search(r"retry_after=([0-9.]+)", peer.closed[1])[1]) <= 1.5
    guard.update(max_refusals_per_second=0)
    assert (await Peer().visit(crashing)).status == 503
    guard.update(max_refusals_per_second=None)
    assert (await Peer().visit(crashing)).closed[0] == 4013
    guard.update(shadow="max_sessions", reraise=False)
    assert (await Peer().visit(crashing)).closed[0] == 4011


@pytest.mark.anyio
async def test_gate_failure_after_an_update_follows_it_at_once():
    gate = MaxSessionsPerKey(1, key=lambda _session: 1 / 0)
    guard = Guard(Settings(gate_failure="open"), gate=gate)
    app = CloseCodeMiddleware(Handler(), guard)
    assert (await Peer().visit(app)).heard == ["accept"]
    guard.update(gate_failure="closed")
    assert (await Peer().visit(app)).closed[0] == 1013


@pytest.mark.anyio
async def test_gate_moved_into_the_shadow_and_back_keeps_its_permits():
    guard = Guard(Settings(max_sessions=2, shed_order="never"))
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        await settle()
        guard.update(shadow="max_sessions")
        await stay.come(2)
        await settle()
        assert stay.codes() == [None] * 4
        # Those whom it would have refused are not in it.
        assert gates(guard)["max_sessions"] == in_use(2, 2, shadow=True)
        guard.update(shadow=[])
        await stay.come(1)
        await settle()
        assert stay.codes() == [None] * 4 + [1013]
        assert gates(guard)["max_sessions"] == in_use(2, 2)
    assert gates(guard)["max_sessions"]["usage"] == 0
    assert guard.snapshot()["refusals"] == {"full": 1}


# The snapshot


def is_plain(data):
    """Whether ``data`` consists of nothing but what every serializer knows."""
    if isinstance(data, dict):
        return type(data) is dict and all(is_plain(part) for item in data.items() for part in item)
    if isinstance(data, list):
        return all(map(is_plain, data))
    return type(data) in {str, int, float, bool, type(None)}


@pytest.mark.anyio
async def test_snapshot_is_right_before_during_and_after_sessions():
    guard = Guard(
        Settings(max_sessions=3, max_sessions_per_client=3, shadow="max_sessions_per_client"), gate=MaxSessions(7)
    )
    names = ["max_sessions_per_client", "max_sessions", "max_sessions_2"]

    def expected(sessions, **rest):
        limits = [3, 3, 7]
        return {
            "open": sessions,
            "leaving": 0,
            "leaving_refused": 0,
            "stalled": 0,
            "busy": 0,
            "waiting": guard._queue.waiting(),
            "draining": False,
            "drain": None,
            "headroom": (3 - sessions) / 3,
            "loop_lag": guard._lag.value(),
            "gates": [
                {
                    "name": name,
                    "cause": "client" if "client" in name else "full",
                    "usage": sessions,
                    "limit": limit,
                    "shadow": "client" in name,
                }
                for name, limit in zip(names, limits, strict=True)
            ],
            "errors": 0,
            "refusals": {},
            "sheds": {},
            "closes": {},
            "error_groups": [],
            **rest,
        }

    assert guard.snapshot() == expected(0)
    async with ConnectedClients(guard) as stay:
        await stay.come(4)
        await settle()
        assert guard.snapshot() == expected(3, refusals={"full": 1})
        session = next(iter(guard.sessions))
        await session.shed("why", retry_after=1)
        assert guard.snapshot()["sheds"] == {"why": 1}
        await wait_until(lambda: len(guard.sessions) == 2)
        assert guard.snapshot() == expected(2, refusals={"full": 1}, sheds={"why": 1}, closes={1013: 1})
        crashing = CloseCodeMiddleware(Handler(ValueError()), guard)
        await Peer().visit(crashing)
        await guard.drain(0)
    after = expected(
        0, errors=1, refusals={"full": 1}, sheds={"why": 1, "drain": 2}, closes={1013: 1, 1011: 1, 1012: 2}
    )
    snapshot = guard.snapshot()
    [group] = snapshot["error_groups"]
    assert is_plain(snapshot)
    assert (group["type"], group["count"]) == ("ValueError", 1)
    assert re.fullmatch("[0-9a-f]{12} [0-9A-Z]{12}", f"{group['fingerprint']} {group['ref']}")
    assert snapshot == {**after, "draining": True, "error_groups": [group]}
    await Peer().visit(crashing)
    assert guard.snapshot()["refusals"] == {"full": 1, "drain": 1}


def test_snapshot_has_no_number_for_what_a_gate_cannot_say():
    class Odd:
        limit = math.inf  # which JSON cannot express

        @property
        def usage(self):
            raise LookupError

        def admit(self, session):
            raise NotImplementedError

    assert Guard(gate=Odd()).snapshot()["gates"] == [
        {"name": "odd", "cause": "shed", "usage": None, "limit": None, "shadow": False}
    ]


NO_SIZE = [10**400, 10**5000, -(10**400), math.nan, -math.inf, True, "5", 1j, []]


@pytest.mark.anyio
@pytest.mark.parametrize("number", NO_SIZE, ids=range(len(NO_SIZE)))
async def test_gate_of_ones_own_may_have_any_numbers(number, caplog):
    """The snapshot, the status page, the metrics and the log survive them."""
    registry = CollectorRegistry()
    seen = []

    class Odd:
        limit = usage = number

        def admit(self, _session):
            raise TryAgainLater(cause="odd", usage=number, limit=number)

        def excess(self):
            return number

    caplog.set_level(logging.INFO)
    caplog.handler.setFormatter(JsonFormatter())
    guard = Guard(gate=Odd(), observers=[PrometheusObserver(registry), seen.append])
    async with guard.lifespan():
        peer = await Peer().visit(CloseCodeMiddleware(Handler(), guard))
    assert peer.closed[0] == 1013
    assert json.loads(json.dumps(guard.snapshot(), allow_nan=False))["gates"][-1]["limit"] is None
    transport = httpx2.ASGITransport(StatusApp(guard, authorize=None))
    async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
        assert (await client.get("/")).status_code == 200
    assert b"closecodes_gate_usage" in generate_latest(registry)
    for line in caplog.text.splitlines():
        json.loads(line)
    assert [refused.limit for refused in events_of(SessionRefused, seen)] == [None]


@pytest.mark.anyio
async def test_session_that_does_not_leave_is_leaving():
    guard = Guard(Settings(shed_grace=0.3))
    app = CloseCodeMiddleware(deaf, guard)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Peer().visit, app)
        await wait_until(lambda: guard.sessions)
        await next(iter(guard.sessions)).shed()
        assert (len(guard.sessions), guard.snapshot()["leaving"]) == (1, 1)
    assert (len(guard.sessions), guard.snapshot()["leaving"]) == (0, 0)


def test_handler_overstaying_on_asyncio_is_cancelled_once():
    """As asyncio cancels; a scope of anyio's would cancel the clean-up too, which only those shield who know of scopes."""

    async def overstay(_scope, receive, send):
        nonlocal cleaned_up
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned_up = True

    async def main():
        guard = Guard(Settings(shed_grace=0.01))
        visit = asyncio.create_task(Peer().visit(CloseCodeMiddleware(overstay, guard)))
        await wait_until(lambda: guard.sessions)
        await next(iter(guard.sessions)).shed()
        await visit
        assert not guard.sessions
        assert not visit.cancelling()

    cleaned_up = False
    asyncio.run(main())
    assert cleaned_up


async def deaf(_scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await anyio.sleep_forever()


async def stop(_scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close"})


async def vanish(_scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": "x"})


class Gone(Peer):
    """Its connection is lost without a word."""

    async def send(self, message):
        if self.sent:
            raise ConnectionResetError
        await super().send(message)

    async def receive(self):
        message = await super().receive()
        return {"type": "websocket.disconnect"} if message["type"] == "websocket.disconnect" else message


@pytest.mark.anyio
async def test_snapshot_is_plain_data():
    guard = Guard(
        Settings(
            max_sessions=5, max_memory="1GiB", max_cpu="99%", max_loop_lag=9, handshakes_per_second=100, shadow="all"
        ),
        gate=Pressure(FakeSensor(), 0.8, 0.5),
    )
    for handler, peer in (
        *((Handler(), Peer()), (Handler(), Gone()), (vanish, Gone()), (stop, Peer())),
        (Handler(TryAgainLater()), Peer()),
    ):
        await peer.visit(CloseCodeMiddleware(handler, guard))
    guard.update(max_sessions=0, shadow=[])
    await Peer().visit(CloseCodeMiddleware(stop, guard))
    snapshot = guard.snapshot()
    assert is_plain(snapshot), snapshot
    assert sum(snapshot["closes"].values()) == 5
    again = json.loads(json.dumps(snapshot, allow_nan=False))
    assert {**again, "closes": {int(code): count for code, count in again["closes"].items()}} == snapshot


def test_snapshot_of_a_gate_of_one_s_own_is_plain_data_too():
    class Own:
        def __init__(self):
            self.limit = object()

        def active(self):
            return 5

        def admit(self, session):
            return MaxSessions(None).admit(session)

    assert is_plain(Guard(Settings(), gate=Own()).snapshot())


@pytest.mark.anyio
async def test_snapshot_does_not_change_any_more():
    guard = Guard(Settings(max_sessions=0))
    await Peer().visit(CloseCodeMiddleware(stop, guard))
    snapshot = guard.snapshot()
    await Peer().visit(CloseCodeMiddleware(stop, guard))
    assert snapshot["refusals"] == {"full": 1}
    snapshot["refusals"]["full"] = 1000
    snapshot["gates"].clear()
    assert guard.snapshot()["refusals"] == {"full": 2}
    assert guard.snapshot()["gates"]


@pytest.mark.anyio
async def test_snapshot_counts_no_refusal_of_a_shadow():
    seen = []
    guard = Guard(Settings(max_sessions=0, shadow="max_sessions"), observers=[seen.append])
    await Peer().visit(CloseCodeMiddleware(stop, guard))
    assert [event.mode for event in events_of(SessionRefused, seen)] == ["shadow"]
    assert (guard.snapshot()["refusals"], guard.snapshot()["closes"]) == ({}, {1000: 1})


# Observers


def failures(caplog):
    return [record for record in caplog.records if vars(record).get("event.name") == "closecodes.callback.failed"]


class Stubborn:
    """An observer that fails at every event."""

    def __init__(self):
        self.told = []

    def __call__(self, event):
        self.told.append(event)
        raise ValueError("the observer")


@pytest.mark.anyio
async def test_failing_observer_is_logged_once_and_called_again(caplog):
    """An observer that raises harms nobody."""
    first, second, before, after = Stubborn(), Stubborn(), [], []
    guard = Guard(Settings(), observers=[before.append, first, second, after.append])
    for _ in range(3):
        peer = await Peer().visit(CloseCodeMiddleware(stop, guard))
        assert peer.heard == ["accept", "close"]
        assert peer.closed == (1000, "")
    assert len(events_of(SessionClosed, first.told)) == len(events_of(SessionClosed, second.told)) == 3
    assert len(events_of(SessionOpened, before)) == len(events_of(SessionClosed, after)) == 3
    assert [name_of(first) in record.getMessage() for record in failures(caplog)] == [True, True]
    assert [event.exception.args for event in events_of(CallbackFailed, after)] == [("the observer",)] * 2
    assert guard.snapshot()["errors"] == 0


@pytest.mark.anyio
async def test_second_log_observer_is_an_observer_as_any(caplog):
    """One of its own, that writes paths as they came: it is told of everything, and writes what is written."""
    peer = await Peer().visit(CloseCodeMiddleware(Handler(ValueError()), Guard(observers=[LogObserver(path="raw")])))
    assert peer.closed[0] == 1011
    names = [getattr(record, "event.name", None) for record in caplog.records if record.levelno >= logging.ERROR]
    assert names == ["closecodes.session.exception"] * 2


@pytest.mark.anyio
@pytest.mark.parametrize("followed", [False, True])
async def test_event_subclass_counts_as_its_base_class(followed):
    """An event of a gate of one's own counts as what it is a kind of."""

    class Mine(SessionRefused):
        pass

    @dataclass
    class Unheard:
        number: int

    class Teller:
        def attach(self, report):
            self.report = report

        def admit(self, session):
            self.report(Unheard(1))
            self.report(Mine(session.facts(), Close(1013), "Teller", "mine", 1.0, "close"))
            return NO_PERMIT

    seen = []
    guard = Guard(gate=Teller(), observers=[seen.append] if followed else [])
    await Peer().visit(CloseCodeMiddleware(Handler(), guard))
    assert guard.snapshot()["refusals"] == {"mine": 1}
    assert [type(event) for event in seen if isinstance(event, (Mine, Unheard))] == [Unheard, Mine] * followed


@pytest.mark.anyio
@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
async def test_session_at_debug_level_logs_its_opening_and_closing(level, caplog):
    caplog.set_level(level, "asgi_closecodes.session")
    guard = Guard()
    await Peer().visit(CloseCodeMiddleware(Handler(), guard))
    told = [getattr(record, "event.name", "") for record in caplog.records if record.name == "asgi_closecodes.session"]
    assert told == ["closecodes.session.opened", "closecodes.session.closed"] * (level == "DEBUG")
    assert guard.snapshot()["closes"] == {1001: 1}


@pytest.mark.anyio
async def test_observer_that_asks_a_cancelled_future_cancels_nobody(caplog):
    def observe(_event):
        raise asyncio.CancelledError

    guard = Guard(Settings(), observers=[observe])
    assert (await Peer().visit(CloseCodeMiddleware(stop, guard))).closed == (1000, "")
    assert len(failures(caplog)) == 1


@pytest.mark.parametrize("order", [KeyboardInterrupt, SystemExit])
def test_observer_may_end_the_process(order):
    def observe(_event):
        raise order

    with pytest.raises(order):
        Guard(Settings(), observers=[observe])


@pytest.mark.anyio
async def test_observer_failing_at_a_failure_still_closes_and_logs(caplog):
    """An observer that raises at a failure keeps nobody from closing and logging it."""
    guard = Guard(Settings(), observers=[Stubborn()])
    peer = await Peer().visit(CloseCodeMiddleware(Handler(KeyError("a bug")), guard))
    assert peer.closed[0] == 1011
    [record] = [record for record in caplog.records if vars(record).get("event.name") == "closecodes.session.exception"]
    assert vars(record)["closecodes.error.id"] in peer.closed[1]


@pytest.mark.anyio
async def test_async_observer_is_told_so_once_and_leaves_no_warning(caplog):
    async def observe(event):
        raise AssertionError("never awaited")

    class Asynchronous:
        async def __call__(self, event):
            raise AssertionError("never awaited")

    guard = Guard(Settings(), observers=[observe, Asynchronous()])
    for _ in range(2):
        assert (await Peer().visit(CloseCodeMiddleware(stop, guard))).closed == (1000, "")
    assert len(failures(caplog)) == 2
    for record in failures(caplog):
        assert record.exc_info[0] is TypeError
        assert "plain function" in str(record.exc_info[1])


@pytest.mark.parametrize("observer", [None, "print", 7, object(), [print]])
@pytest.mark.parametrize("build", [Guard, lambda **guard: CloseCodeMiddleware(Handler(), **guard)])
def test_observer_that_cannot_be_called_is_refused(observer, build):
    with pytest.raises(TypeError, match=f"observers: {re.escape(shown(observer))} cannot be called"):
        build(observers=[print, observer])


# Who makes a guard


@pytest.mark.parametrize("gate", [object(), MaxSessions, "gate", lambda session: None, type("G", (), {"admit": 1})()])
@pytest.mark.parametrize("build", [Guard, lambda **guard: CloseCodeMiddleware(Handler(), **guard)])
def test_gate_admits(gate, build):
    if gate is MaxSessions:
        gate = type("NoMethod", (), {"admit": None})
    with pytest.raises(TypeError, match="has no method admit"):
        build(gate=gate)


class Room(set):
    """A gate that is empty, and therefore false, as long as nobody is in it."""

    @asynccontextmanager
    async def admit(self, session):
        self.add(session)
        try:
            yield
        finally:
            self.remove(session)


@pytest.mark.parametrize(
    "part",
    [
        {"settings": Settings()},
        {"gate": MaxSessions(5)},
        {"gate": Room()},
        {"exceptions": {KeyError: 4000}},
        {"observers": [print]},
        {"subprotocol": max},
    ],
    ids=lambda part: next(iter(part)),
)
def test_guard_does_not_come_together_with_its_parts(part):
    with pytest.raises(TypeError, match="takes guard= or what a guard is made of, not both"):
        CloseCodeMiddleware(Handler(), Guard(Settings()), **part)
    CloseCodeMiddleware(Handler(), **part)


def test_settings_are_no_guard_and_a_dict_is_no_settings():
    with pytest.raises(TypeError, match=r"guard must be a Guard, not .*; settings go into settings="):
        CloseCodeMiddleware(Handler(), Settings(max_sessions=5))
    for build in (Guard, lambda settings: CloseCodeMiddleware(Handler(), settings=settings)):
        with pytest.raises(TypeError, match=r"settings must be Settings, not .*; use Settings\("):
            build({"max_sessions": 5})


@pytest.mark.anyio
async def test_middlewares_with_one_guard_share_limit_and_counts():
    guard = Guard(Settings(max_sessions=3))
    async with ConnectedClients(guard) as one, ConnectedClients(guard) as other:
        assert one.app is not other.app
        await one.come(2)
        await settle()
        await other.come(2)
        await settle()
        assert (one.codes(), other.codes()) == ([None, None], [None, 1013])
        assert len(guard.sessions) == 3
        assert one.app.guard is other.app.guard is guard
        guard.update(max_sessions=4)
        await one.come(2)
        await settle()
        assert one.codes() == [None, None, None, 1013]
        await guard.drain(0)
    assert {*one.codes(), *other.codes()} == {1012, 1013}
    assert gates(guard)["max_sessions"]["usage"] == 0


@pytest.mark.anyio
async def test_two_middlewares_without_a_guard_share_nothing():
    one, other = (CloseCodeMiddleware(Handler(), settings=Settings(max_sessions=1)) for _ in range(2))
    async with ConnectedClients(one.guard) as stay:
        await stay.come(2)
        await settle()
        assert stay.codes() == [None, 1013]
        assert (await Peer().visit(other)).heard == ["accept"]


@pytest.mark.anyio
async def test_drain_and_clients_own_limit_are_no_overload():
    seen = []
    settings = Settings(max_sessions=2, max_sessions_per_client=1, when_client_full="replace_oldest")
    guard = Guard(settings, observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(2)  # the second takes the place of the first
        await wait_until(lambda: stay.codes() == [1013, None])
        guard.update(max_sessions=0, max_sessions_per_client=None)
        await wait_until(lambda: len(guard.sessions) - guard.snapshot()["leaving"] == 0)
        guard.update(max_sessions=5)
        await stay.come(1)
        await settle()
        await guard.drain(0)
        await Peer().visit(stay.app)
    overloads = {(type(event).__name__, event.cause): event.is_overload for event in events_of(SessionRefused, seen)}
    overloads |= {(type(event).__name__, event.cause): event.is_overload for event in events_of(SessionShed, seen)}
    assert overloads == {
        ("SessionRefused", "drain"): False,
        ("SessionShed", "replaced"): False,
        ("SessionShed", "full"): True,
        ("SessionShed", "drain"): False,
    }


def test_own_gate_is_asked_after_those_of_the_settings():
    gate = Pressure(LoopLag(clock=Clock()), 1, 0.5)
    guard = Guard(Settings(max_sessions=1, handshakes_per_second=5), gate=gate)
    assert guard.gate.gates[-1] is gate
    assert [entry["name"] for entry in guard.snapshot()["gates"]][-3:] == [
        "max_sessions",
        "handshakes_per_second",
        "lag",
    ]


# The accounting, step by step against a model


clients = st.sampled_from([("192.0.2.1", 1), ("192.0.2.2", 2), None])
limits = st.none() | st.integers(0, 3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("come"), clients),
        st.tuples(st.just("come"), clients),
        st.tuples(st.sampled_from(["leave", "return", "crash", "shed", "cancel"]), st.integers(0, 9)),
        st.tuples(st.sampled_from(["max_sessions", "max_sessions_per_client"]), limits),
    ),
    max_size=30,
)
CODES = {"leave": 1001, "return": 1000, "crash": 1011, "shed": 1013, "cancel": 1012}


class Visit:
    """A session that does what it is told."""

    def __init__(self, client):
        self.client = client
        self.told = anyio.Event()
        self.peer = StayingClient(self.told, client=client)
        self.scope = anyio.CancelScope()
        self.session = None

    async def handler(self, scope, receive, send):
        self.session = scope["extensions"]["closecodes"]
        await receive()
        await send({"type": "websocket.accept"})
        await self.told.wait()
        if self.how in {"leave", "shed"}:
            await receive()
        elif self.how == "crash":
            raise ValueError("a bug")

    async def run(self, guard):
        with self.scope:
            await self.peer.visit(CloseCodeMiddleware(self.handler, guard))


class Model:
    """What a guard should know."""

    def __init__(self):
        self.inside = []
        self.max_sessions = self.max_sessions_per_client = None
        self.refusals, self.closes, self.sheds = Counter(), Counter(), Counter()

    def of_client(self, client):
        return sum(visit.client == client for visit in self.inside)

    def come(self, visit):
        per_client = self.max_sessions_per_client
        if visit.client is not None and per_client is not None and self.of_client(visit.client) >= per_client:
            self.refusals["client"] += 1
        elif self.max_sessions is not None and len(self.inside) >= self.max_sessions:
            self.refusals["full"] += 1
        else:
            self.inside.append(visit)
            return True
        return False

    def end(self, visit, how):
        self.inside.remove(visit)
        self.closes[CODES[how]] += 1
        if how == "shed":
            self.sheds["model"] += 1

    @property
    def busiest(self):
        return max(Counter(visit.client[0] for visit in self.inside if visit.client).values(), default=0)

    def check(self, guard):
        snapshot = guard.snapshot()
        assert snapshot["open"] + snapshot["leaving"] == len(self.inside)
        assert snapshot["leaving"] == 0
        assert {session.id for session in guard.sessions} == {visit.session.id for visit in self.inside}
        assert {entry["name"]: (entry["usage"], entry["limit"]) for entry in snapshot["gates"]} == {
            name: standing
            for name, standing in {
                "max_sessions_per_client": (self.busiest, self.max_sessions_per_client),
                "max_sessions": (len(self.inside), self.max_sessions),
            }.items()
            if standing[1] is not None
        }
        for gate in guard.gate.gates:
            for host in ("192.0.2.1", "192.0.2.2") if isinstance(gate, MaxSessionsPerKey) else ():
                assert gate.active_of(host) == sum((visit.client or [None])[0] == host for visit in self.inside)
        assert snapshot["errors"] == self.closes[1011]
        assert Counter(snapshot["refusals"]) == self.refusals
        assert Counter(snapshot["closes"]) == self.closes
        assert Counter(snapshot["sheds"]) == self.sheds


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(steps=steps)
@settings(max_examples=50, deadline=None)
def test_guard_at_every_moment_knows_sessions_and_counts(backend, steps):
    """A guard knows at every moment who is there and what has happened."""

    async def main():
        guard, model = Guard(Settings(shed_order="never", reject_with="close")), Model()
        async with anyio.create_task_group() as tasks:
            for step, argument in steps:
                if step == "come":
                    visit = Visit(argument)
                    tasks.start_soon(visit.run, guard)
                    await settle()
                    admitted = model.come(visit)
                    assert visit.peer.heard == (["accept"] if admitted else ["accept", "close"])
                elif step in CODES and model.inside:
                    visit = model.inside[argument % len(model.inside)]
                    visit.how = step
                    if step == "cancel":
                        visit.scope.cancel()
                    else:
                        if step == "shed":
                            assert await visit.session.shed("model", retry_after=1)
                            assert guard.snapshot()["leaving"] == 1
                        visit.told.set()
                    await settle()
                    model.end(visit, step)
                    assert visit.peer.heard == (["accept"] if step == "leave" else ["accept", "close"])
                    assert step == "leave" or visit.peer.closed[0] == CODES[step]
                elif step not in CODES:
                    setattr(model, step, argument)
                    guard.update(**{step: argument})
                model.check(guard)
            tasks.cancel_scope.cancel()
        assert not guard.sessions
        assert all(not entry["usage"] for entry in guard.snapshot()["gates"])

    anyio.run(main, backend=backend)


# A crowd

CROWD = 2000


class Turnstile:
    """A slow gate: it waits before its place is taken, while it holds it, and before it is given back."""

    def __init__(self, rng):
        self.inside = 0
        self.passed = 0
        self.rng = rng

    @asynccontextmanager
    async def admit(self, _session):
        await pause(self.rng, 4)
        self.inside += 1
        self.passed += 1
        try:
            await pause(self.rng, 4)
            yield
            await pause(self.rng, 4)
        finally:
            self.inside -= 1


class Leaving(Peer):
    """Knows whether the application was told that it has left."""

    left = False

    async def receive(self):
        message = await super().receive()
        self.left = self.left or message["type"] == "websocket.disconnect"
        return message


async def pause(rng, most):
    for _ in range(rng.randrange(most)):
        await anyio.lowlevel.checkpoint()


@pytest.mark.slow
@pytest.mark.anyio
async def test_sessions_ended_half_of_them_cancelled_leave_nothing(caplog):
    """Of a crowd, half of which is cancelled, nothing is left."""
    caplog.set_level(logging.CRITICAL, "asgi_closecodes")
    rng = random.Random(20261123)
    seen, begun, admitted, cancelled, peers = [], {}, [], Counter(), {}
    turnstile = Turnstile(rng)
    guard = Guard(Settings(max_sessions=250, max_sessions_per_client=3), gate=turnstile, observers=[seen.append])

    async def handler(scope, receive, send):
        session = scope["extensions"]["closecodes"]
        begun[session.id] = "unanswered"
        admitted.append(scope["client"][1])
        with anyio.CancelScope(shield=rng.random() < 0.5):
            await receive()
            await pause(rng, 4)
            await send({"type": "websocket.accept"})
            begun[session.id] = "accepted"
        await pause(rng, 8)
        match rng.randrange(5):
            case 0:
                raise ValueError("a bug")
            case 1:
                raise TryAgainLater(cause="handler")
            case 2:
                while (await receive())["type"] != "websocket.disconnect":
                    pass
            case 3:
                await send({"type": "websocket.close", "code": 4000})

    app = CloseCodeMiddleware(handler, guard)

    async def visit(number, scope):
        peer = Leaving("x", client=(f"192.0.2.{number % 97}", number))
        peers[number] = peer
        await pause(rng, 40)
        with scope:
            await peer.visit(app)
        cancelled[scope.cancelled_caught] += 1

    async def cancel_soon(scope):
        await pause(rng, 50)
        scope.cancel()

    doomed = set(rng.sample(range(CROWD), CROWD // 2))
    with anyio.fail_after(600):
        async with anyio.create_task_group() as tasks:
            for number in range(CROWD):
                scope = anyio.CancelScope()
                tasks.start_soon(visit, number, scope)
                if number in doomed:
                    tasks.start_soon(cancel_soon, scope)

    assert turnstile.inside == 0
    assert not guard.sessions
    assert not any(entry["usage"] for entry in guard.snapshot()["gates"])
    assert guard.snapshot()["leaving"] == 0
    gate = next(gate for gate in guard.gate.gates if isinstance(gate, MaxSessionsPerKey))
    assert not gate._sessions

    closed = Counter(event.session.id for event in events_of(SessionClosed, seen))
    opened = Counter(event.session.id for event in events_of(SessionOpened, seen))
    assert closed == Counter(begun.keys()), "each session that began is closed once, and no other"
    assert opened == Counter({key: 1 for key, stage in begun.items() if stage == "accepted"})
    assert sum(guard.snapshot()["closes"].values()) == len(
        [event for event in events_of(SessionClosed, seen) if event.close is not None]
    )
    assert len(events_of(SessionFailed, seen)) == guard.snapshot()["errors"]
    for peer in peers.values():
        assert peer.heard.count("accept") <= 1
        assert peer.heard.count("close") <= 1
        assert not peer.sent or peer.left or peer.heard[-1] in {"close", "http.response.body"}
    for number in admitted:
        assert peers[number].sent

    # It was a crowd, and it was cancelled everywhere.
    refused = len(events_of(SessionRefused, seen))
    assert cancelled[True] > 400
    assert refused > 75
    assert len(begun) > 500
    assert len(begun) - len(opened) > 5, "cancelled before the answer"
    assert turnstile.passed - len(begun) > 12, "cancelled in the gate"
    assert CROWD - len(begun) - refused > 75, "cancelled before any answer of the gate"
