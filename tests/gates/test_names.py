"""Gates as types: what ``as_gate`` makes of an object, and the name of each gate."""

from contextlib import asynccontextmanager

import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, TryAgainLater
from asgi_closecodes.events import CallbackFailed, SessionRefused
from asgi_closecodes.gates import (
    AllOf,
    ClusterSessions,
    ClusterSessionsPerKey,
    Cpu,
    GateBase,
    HandshakeRate,
    HandshakesInProgress,
    LoopLag,
    MaxSessions,
    MaxSessionsPerKey,
    Memory,
    Pressure,
    Shadow,
)
from asgi_closecodes.gates.base import NO_PERMIT, as_gate
from tests.support.asgi import Handler, Peer, events_of
from tests.support.fakes import ConnectedClients, FakeSensor, FakeSession, admitted, wait_until

REDIS = "redis://localhost"


def names(guard):
    return [gate["name"] for gate in guard.snapshot()["gates"]]


class Bare:
    def admit(self, _session):
        return NO_PERMIT


class HTTPRooms2D(GateBase):
    cause = "rooms"

    def admit(self, _session):
        return NO_PERMIT


class Silent(HTTPRooms2D):
    """A gate that does not call the ``__init__`` that it inherits."""

    def __init__(self):
        pass


class Office(HTTPRooms2D):
    name = "office_hours"


# Names


@pytest.mark.parametrize(
    ("gate", "name"),
    [
        (MaxSessions(1), "max_sessions"),
        (MaxSessionsPerKey(1), "max_sessions_per_key"),
        (HandshakesInProgress(1), "handshakes_in_progress"),
        (HandshakeRate(1), "handshake_rate"),
        (Pressure(LoopLag(), 1, 0.5), "lag"),
        (Pressure(FakeSensor(), 1, 0.5, name="heat"), "heat"),
        (ClusterSessions(1, REDIS), "cluster_sessions"),
        (ClusterSessions(1, REDIS, "rooms"), "cluster_sessions.rooms"),
        (ClusterSessionsPerKey(1, REDIS, name="a:b"), "cluster_sessions_per_key.a_b"),
        (ClusterSessions(1, REDIS, "x" * 64), f"cluster_sessions.{'x' * 47}"),
        (Shadow(MaxSessions(1, name="mine")), "mine"),
        (HTTPRooms2D(), "http_rooms2_d"),
        (HTTPRooms2D("given"), "given"),
        (Silent(), "silent"),
        (Office(), "office_hours"),
        (Bare(), "bare"),
        (type("Räume", (Bare,), {})(), "r_ume"),
        (type("Named", (Bare,), {"name": "rooms"})(), "rooms"),
        (type("Odd", (Bare,), {"name": "no token"})(), "odd"),
        (type("Odd", (Bare,), {"name": 5})(), "odd"),
    ],
)
def test_gate_has_an_explicit_name(gate, name):
    guard = Guard(gate=gate)
    assert names(guard) == [name]
    assert [gate["name"] for gate in guard.snapshot()["gates"]] == [name]


@pytest.mark.parametrize(
    ("gate", "name"),
    [
        (lambda: MaxSessions(1), "max_sessions"),
        (lambda: MaxSessionsPerKey(1), "max_sessions_per_key"),
        (lambda: HandshakesInProgress(1), "handshakes_in_progress"),
        (lambda: HandshakeRate(1), "handshake_rate"),
        (lambda: Pressure(LoopLag(), 1, 0.5), "lag"),
        (lambda: Pressure(Memory(), 1, 0.5), "memory"),
        (lambda: Pressure(Cpu(), 1, 0.5), "cpu"),
        (lambda: ClusterSessions(1, REDIS), "cluster_sessions"),
        (lambda: ClusterSessionsPerKey(1, REDIS), "cluster_sessions_per_key"),
    ],
)
def test_renaming_a_class_changes_no_name(gate, name):
    """Nor that of the sensor: nobody's alert is to break by it."""
    built = gate()
    kinds = [type(built), *([type(built.sensor)] if isinstance(built, Pressure) else [])]
    before = [kind.__name__ for kind in kinds]
    try:
        for kind in kinds:
            kind.__name__ = "Renamed"
        renamed = gate()
        assert names(Guard(gate=renamed)) == [name]
        assert renamed.cause == built.cause
    finally:
        for kind, its in zip(kinds, before, strict=True):
            kind.__name__ = its


def test_heir_of_a_gate_has_a_name_of_its_own():
    assert names(Guard(gate=type("Paid", (MaxSessions,), {})(1))) == ["paid"]
    assert names(Guard(gate=type("Paid", (MaxSessions,), {"name": "rooms"})(1))) == ["rooms"]


@pytest.mark.parametrize("name", [None, 5, b"queue"])
def test_sensor_whose_name_is_no_text_is_refused(name):
    sensor = FakeSensor()
    sensor.name = name
    with pytest.raises(TypeError, match="the name of the sensor FakeSensor is .*give it a text"):
        Pressure(sensor, 1, 0.5)


def test_gates_of_settings_are_named_as_their_settings():
    limits = {
        "max_loop_lag": 1,
        "max_memory": 0.8,
        "max_cpu": 0.9,
        "max_sessions_per_client": 1,
        "max_handshakes_in_progress": 1,
        "max_sessions": 1,
        "handshakes_per_second": 1,
        "cluster_max_sessions_per_client": 1,
        "cluster_max_sessions": 1,
    }
    guard = Guard(Settings(redis_url=REDIS, cluster_name="rooms", **limits))
    assert names(guard) == [*limits]


def test_default_names_are_made_unique():
    own = AllOf(MaxSessions(1), Bare(), MaxSessions(2), Bare(), MaxSessions(3, name="max_sessions_2"))
    assert names(Guard(gate=own)) == ["max_sessions", "bare", "max_sessions_3", "bare_2", "max_sessions_2"]


def test_settings_without_limit_claim_no_name():
    gate = MaxSessions(5)
    guard = Guard(gate=gate)
    assert names(guard) == ["max_sessions"]
    guard.update(max_sessions=9)
    assert names(guard) == ["max_sessions", "max_sessions_2"]
    assert gate.name == "max_sessions_2"
    guard.update(max_sessions=None)
    assert names(guard) == ["max_sessions"]


def test_long_default_names_stay_tokens():
    kind = type("X" * 80, (Bare,), {})
    assert names(Guard(gate=AllOf(kind(), kind()))) == ["x" * 64, f"{'x' * 62}_2"]


@pytest.mark.parametrize("name", ["", "no token", "é", "x" * 65, 5, b"x", "a\n"])
@pytest.mark.parametrize(
    "build",
    [lambda name: MaxSessions(1, name=name), HTTPRooms2D, lambda name: Pressure(FakeSensor(), 1, 0.5, name=name)],
)
def test_name_that_is_no_token_is_refused(build, name):
    with pytest.raises(ValueError, match=r"name=.*: use 1 to 64 letters"):
        Guard(gate=build(name))


def test_class_with_a_name_that_is_no_token_is_refused():
    class Wrong(HTTPRooms2D):
        name = "no token"

    with pytest.raises(ValueError, match="name='no token': use 1 to 64"):
        Guard(gate=Wrong())


@pytest.mark.parametrize(
    "gates",
    [
        (MaxSessions(1, name="a"), MaxSessionsPerKey(1, name="a")),
        (MaxSessions(1, name="a"), Shadow(HandshakeRate(1, name="a"))),
        (HTTPRooms2D("draining"),),
        (HTTPRooms2D("max_cpu"),),
    ],
)
def test_two_equal_given_names_are_refused(gates):
    with pytest.raises(ValueError, match=r"two gates are named .*give one of them another name"):
        Guard(Settings(max_cpu=0.5), gate=AllOf(*gates))


def test_update_to_a_name_that_is_taken_changes_nothing():
    guard = Guard(gate=AllOf(HTTPRooms2D("max_sessions"), MaxSessions(5)))
    with pytest.raises(ValueError, match="two gates are named max_sessions"):
        guard.update(max_sessions=5)
    assert guard.settings.max_sessions is None
    assert names(guard) == ["max_sessions", "max_sessions_2"]


def test_same_gate_twice_has_one_name():
    gate = MaxSessions(1)
    assert names(Guard(gate=AllOf(gate, gate))) == ["max_sessions", "max_sessions"]


# What an object has


@pytest.mark.parametrize("own", [{}, {"__init__": lambda self: None}])
def test_gate_that_forgets_admit_is_refused(own):
    with pytest.raises(TypeError, match="abstract class Forgot .*admit"):
        Guard(gate=type("Forgot", (GateBase,), own)())


def test_gate_whose_admit_is_no_method_is_refused():
    with pytest.raises(TypeError, match=r"Wrong has no method admit\(session\); see gates.Gate"):
        Guard(gate=type("Wrong", (GateBase,), {"admit": 5})())


def test_gate_base_is_used_as_it_is():
    gate = HTTPRooms2D()
    assert as_gate(gate) is gate
    assert Guard(gate=gate).gate.gates == (gate,)


@pytest.mark.anyio
async def test_bare_gate_is_asked_for_what_it_has():
    calls = []

    class Everything(Bare):
        cause, limit, usage, name, is_overload = "mine", 7, 3, "everything", False

        def sample(self):
            calls.append("sample")

        def excess(self):
            return 0

        def to_shed(self):
            return [session for session in guard.sessions if session.scope["path"] == "/shed"]

        def expired(self):
            return (session for session in guard.sessions if session.scope["path"] == "/expired")

        def attach(self, report):
            calls.append("attach")

        def start(self):
            calls.append("start")

        async def stop(self):
            calls.append("stop")

    seen = []
    guard = Guard(Settings(shed_rate=1000), gate=Everything(), observers=[seen.append])
    async with guard.lifespan(), ConnectedClients(guard) as stay:
        for path in ("/shed", "/expired", "/stays"):
            await stay.come(1, path=path)
        await wait_until(lambda: stay.codes() == [1013, 1013, None])
        assert stay.peers[0].closed[1].endswith("cause=mine")
        await wait_until(lambda: "sample" in calls)
    assert calls[:2] == ["attach", "start"]
    assert calls[-1] == "stop"
    assert events_of(CallbackFailed, seen) == []
    [gate] = guard.snapshot()["gates"]
    assert gate == {"name": "everything", "cause": "mine", "usage": 3, "limit": 7, "shadow": False}


@pytest.mark.anyio
async def test_bare_gate_with_other_attributes_is_left_alone():
    class Unrelated(Bare):
        start, stop, excess, sample = 5, None, 7, "x"

    seen = []
    guard = Guard(gate=Unrelated(), observers=[seen.append])
    async with guard.lifespan():
        await Peer().visit(CloseCodeMiddleware(Handler(), guard))
    assert events_of(CallbackFailed, seen) == []


@pytest.mark.parametrize(
    ("members", "is_watched"),
    [
        ({}, False),
        ({"sample": lambda self: None}, True),
        ({"excess": lambda self: 0}, True),
        ({"to_shed": lambda self: ()}, True),
        ({"expired": lambda self: ()}, True),
        ({"attach": lambda self, report: None}, False),
        ({"sample": lambda self: None, "limit": None}, None),
    ],
)
def test_ticker_is_needed_for_what_it_calls(members, is_watched):
    assert as_gate(type("Own", (HTTPRooms2D,), members)()).is_watched is (True if is_watched is None else is_watched)
    assert as_gate(type("Own", (Bare,), members)()).is_watched is bool(is_watched)


def test_limits_are_watched_where_they_limit():
    for kind in (MaxSessions, MaxSessionsPerKey, HandshakesInProgress):
        gate = kind(None)
        assert not gate.is_watched
        gate.limit = 5
        assert gate.is_watched
        assert Shadow(gate).is_watched
    assert not HandshakeRate(1).is_watched


@pytest.mark.anyio
async def test_names_are_what_refusals_tell():
    @asynccontextmanager
    async def refuse(_self, _session):
        raise TryAgainLater(cause="closed")
        yield

    seen = []
    gates = Shadow(MaxSessions(0, name="shadowed")), type("OfficeHours", (), {"admit": refuse})()
    await Peer().visit(CloseCodeMiddleware(Handler(), gate=AllOf(*gates), observers=[seen.append]))
    assert [(refused.gate, refused.cause) for refused in events_of(SessionRefused, seen)] == [
        ("shadowed", "full"),
        ("office_hours", "closed"),
    ]


@pytest.mark.parametrize("how", ["attributes of the class", "attributes of the gate", "properties"])
def test_gate_says_its_numbers_as_it_likes(how):
    members = {"cause": "mine", "is_overload": False, "limit": 7, "usage": 3}

    class Own(HTTPRooms2D):
        def __init__(self):
            super().__init__()
            if how == "attributes of the gate":
                vars(self).update(members)
                self.usage = 3

    if how == "attributes of the class":
        vars_of = members
    else:
        vars_of = {name: property(lambda _, value=value: value) for name, value in members.items()}
    kind = Own if how == "attributes of the gate" else type("Own", (Own,), vars_of)
    [gate] = Guard(gate=kind()).snapshot()["gates"]
    assert gate == {"name": "own", "cause": "mine", "usage": 3, "limit": 7, "shadow": False}


# Shadow


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [MaxSessionsPerKey, ClusterSessionsPerKey])
def test_shadow_changes_nothing_in_its_gate(kind):
    gate = (
        kind(1, REDIS, when_full="replace_oldest")
        if kind is ClusterSessionsPerKey
        else kind(1, when_full="replace_oldest")
    )
    Shadow(gate)
    assert gate.when_full == "replace_oldest"


@pytest.mark.anyio
async def test_shadow_makes_nobody_leave():
    seen = []
    gate = MaxSessionsPerKey(1, key=lambda session: session.key, when_full="replace_oldest")
    guard = Guard(gate=Shadow(gate), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        for session in guard.sessions:
            session.key = "alice"
        assert len(events_of(SessionRefused, seen)) == 2
        assert {event.mode for event in events_of(SessionRefused, seen)} == {"shadow"}
        assert stay.codes() == [None] * 3
        assert gate.usage == 1


@pytest.mark.anyio
async def test_shadow_of_several_gates_is_a_shadow_of_each():
    dial = FakeSensor()
    dial.sample = lambda: setattr(dial, "shown", 0.1)
    guard = Guard(gate=Shadow(AllOf(MaxSessions(0), Pressure(dial, 0.5, 0.2))))
    assert [(gate["name"], gate["shadow"]) for gate in guard.snapshot()["gates"]] == [
        ("max_sessions", True),
        ("dial", True),
    ]
    async with guard.lifespan():
        await wait_until(lambda: dial.shown == 0.1)


# How much of a key's limit is in use


@pytest.mark.anyio
async def test_usage_is_what_the_busiest_key_has(anyio_backend):
    gate = MaxSessionsPerKey(None, key=lambda session: session.name)
    places = []
    for step, name in enumerate(["a", "b", "a", None, None, None, "a", "b", "c"]):
        session = FakeSession(name=name)
        places.append(gate.admit(session))
        await places[-1].__aenter__()
        assert gate.usage == [1, 1, 2, 2, 2, 2, 3, 3, 3][step]
    for place, most in zip(places, [2, 2, 1, 1, 1, 1, 1, 1, 0], strict=True):
        await place.__aexit__(None, None, None)
        assert gate.usage == most
    assert not await admitted(MaxSessionsPerKey(0))
