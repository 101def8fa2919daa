"""What new users get wrong: each mistake is refused, or told, in words that lead to the remedy."""

import io
import json
import logging
import sys
import weakref

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, WebSocketRoute

from asgi_closecodes import (
    Close,
    CloseCodeMiddleware,
    CloseWith,
    Guard,
    Settings,
    SettingsError,
    StatusApp,
    TryAgainLater,
)
from asgi_closecodes.events import SessionRefused, SettingIgnored, UnknownSetting
from asgi_closecodes.gates import AllOf, LoopLag, MaxSessions, MaxSessionsPerKey, Memory, Pressure, Shadow, sensors
from asgi_closecodes.guard import unused
from asgi_closecodes.logs import configure_logging, observer
from asgi_closecodes.telemetry.prometheus import PrometheusObserver
from tests.support.asgi import Handler, Peer, events_of, get

BUILD = [Guard, lambda **parts: CloseCodeMiddleware(Handler(), **parts)]
SECRET = "correct-horse"


@pytest.fixture(autouse=True)
def no_other_guards(monkeypatch):
    monkeypatch.setattr(unused, "_unused", weakref.WeakSet())
    monkeypatch.setattr(observer, "_instances", weakref.WeakSet())


# What is refused


@pytest.mark.parametrize("build", BUILD)
@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"gate": MaxSessions}, r"gate: MaxSessions is a class; give a gate of it, as MaxSessions\(\.\.\.\)"),
        ({"gate": [MaxSessions(1)]}, r"gate: list has no method admit\(session\); AllOf\(\.\.\.\) makes one"),
        ({"observers": print}, r"observers must be a list of functions, not print; use observers=\[print\]"),
        ({"observers": PrometheusObserver}, "observers must be a list of functions, not <class .*PrometheusObserver'>"),
        ({"observers": [PrometheusObserver]}, r"PrometheusObserver'> is a class; .* as PrometheusObserver\(\)"),
        ({"settings": Settings}, r"settings must be Settings, not <class '.*Settings'>.*use Settings\(max_sessions"),
        (
            {"settings": {"redis_url": SECRET}},
            r"settings must be Settings, not <dict object>.*use Settings\(max_sessions",
        ),
        ({"max_sessions": 5}, r"takes no max_sessions: settings go into settings=Settings\(max_sessions=5\)"),
        (
            {"max_sessions": 5, "shed_order": "never"},
            r"settings go into settings=Settings\(max_sessions=5, shed_order='never'\)",
        ),
        ({"redis_url": SECRET}, r"settings=Settings\(redis_url=\.\.\.\)"),
        ({"max_sesions": 5}, r"takes no max_sesions, .*; did you mean settings=Settings\(max_sessions=\.\.\.\)\?"),
        ({"exceptions": [(OSError, SECRET)]}, r"exceptions must be a mapping, .* 1008\}, not <list object>"),
        ({"exceptions": OSError}, r"exceptions must be a mapping, .*, not <class 'OSError'>"),
        ({"subprotocol": "v2"}, "subprotocol='v2' cannot be called; use a function that chooses"),
        ({"gates": MaxSessions(1)}, r"takes no gates, .*; did you mean gate\?"),
        ({"zzzzzz": 1}, r"takes no zzzzzz, but (guard, )?settings, gate, exceptions, observers and subprotocol$"),
        ({"cluster_name": f"a@{SECRET}"}, r"Settings\(cluster_name=<str of 15 characters>\)"),
    ],
)
def test_part_in_the_wrong_place_is_refused(build, parts, problem):
    with pytest.raises(TypeError, match=problem) as refused:
        build(**parts)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("cls", [TryAgainLater, CloseWith, Close, OSError])
def test_class_of_closes_as_a_mapping_is_refused(cls):
    """Called with the exception, it would send the exception's text to the client."""
    with pytest.raises(ValueError, match=rf"KeyError: .* is a class; .* as lambda error: {cls.__name__}\("):
        Guard(exceptions={KeyError: cls})


async def user_of(session):
    return session.scope["path"]


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (lambda: MaxSessionsPerKey(1, key=user_of), "key=.*user_of is async; .* use a plain function"),
        (lambda: AllOf(MaxSessions(1), MaxSessions), "MaxSessions is a class"),
        (lambda: Shadow(MaxSessions), "MaxSessions is a class"),
        (lambda: AllOf([MaxSessions(1)]), "list has no method admit"),
        (lambda: Pressure(LoopLag, 1, 0.5), r"LoopLag; give a sensor, as LoopLag\(\)"),
        (
            lambda: CloseCodeMiddleware(Handler(), Guard),
            r"guard must be a Guard, not <class '.*Guard'>; .* as guard=Guard\(",
        ),
        (
            lambda: CloseCodeMiddleware(Handler(), MaxSessions(1)),
            "guard must be a Guard, not .*MaxSessions object>; .* a gate into gate=",
        ),
        (lambda: CloseCodeMiddleware(Handler(), Settings()), "settings go into settings="),
        (lambda: CloseCodeMiddleware(Handler(), gaurd=Guard()), r"did you mean guard\?"),
        (lambda: StatusApp(Settings(), authorize=None), r"guard must be a Guard, not <.*Settings object>; .*Guard\(\)"),
        (lambda: StatusApp(Guard, authorize=None), r"guard must be a Guard, not <class '.*Guard'>; use the one of"),
        (lambda: StatusApp(Guard(), authorize=None, allowed_hosts=f"a@{SECRET}"), r"must be a list, as \['ops"),
    ],
)
def test_class_or_a_stranger_is_refused(build, problem):
    with pytest.raises(TypeError, match=problem):
        build()


@pytest.mark.anyio
@pytest.mark.parametrize("parts", [{"max_sessions": 5}, {"guard": Settings()}, {"gate": MaxSessions}])
async def test_application_with_a_mistake_does_not_start(parts):
    app = Starlette(middleware=[Middleware(CloseCodeMiddleware, **parts)])
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    with pytest.raises(TypeError):
        await app({"type": "lifespan", "asgi": {}}, receive, send)
    [failed] = sent
    assert failed["type"] == "lifespan.startup.failed"
    assert "Settings(" in failed["message"] or "settings=" in failed["message"] or "as MaxSessions" in failed["message"]


# A limit of memory that cannot be read


@pytest.fixture
def without_psutil(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(sensors, "_cgroups", lambda *_: iter(()))


@pytest.mark.parametrize("limit", [0.8, "80%", "512MiB"])
def test_memory_that_is_unreadable_is_refused(without_psutil, monkeypatch, limit):
    remedy = r"max_memory.*needs the package psutil.*pip install 'asgi-closecodes\[pressure\]'"
    with pytest.raises(SettingsError, match=remedy):
        Settings(max_memory=limit)
    monkeypatch.setenv("CLOSECODES_MAX_MEMORY", str(limit))
    with pytest.raises(SettingsError, match=remedy):
        Guard()


def test_memory_of_a_cgroup_needs_no_psutil(without_psutil, monkeypatch):
    monkeypatch.setattr(Memory, "_shares_v2", lambda _: iter([0.5]))
    assert Settings(max_memory=0.8).max_memory == 0.8
    with pytest.raises(SettingsError, match="needs the package psutil: pip"):
        Settings(max_memory="512MiB")


# Variables that code overrides


def ignored(settings):
    seen = []
    Guard(settings, observers=[seen.append])
    assert not events_of(UnknownSetting, seen)
    return [event.name for event in events_of(SettingIgnored, seen)]


def test_variable_that_code_overrides_is_told(monkeypatch):
    monkeypatch.setenv("CLOSECODES_MAX_SESSIONS", "5")
    monkeypatch.setenv("closecodes_shed_order", "never")
    monkeypatch.setenv("CLOSECODES_MAX_CPU", "")
    monkeypatch.setenv("CLOSECODES_REDIS_URL", f"redis://:{SECRET}@a")
    settings = Settings(max_sessions=7, max_cpu=0.5, shed_order="oldest", redis_url="redis://b")
    assert ignored(settings) == [
        "CLOSECODES_MAX_SESSIONS",
        "CLOSECODES_REDIS_URL",
        "closecodes_shed_order",
    ]


def test_variable_that_cannot_be_used_is_told(monkeypatch):
    monkeypatch.setenv("CLOSECODES_MAX_SESSIONS", "many")
    assert ignored(Settings(max_sessions=7)) == ["CLOSECODES_MAX_SESSIONS"]


def test_variable_that_says_the_same_is_not_told(monkeypatch):
    monkeypatch.setenv("CLOSECODES_MAX_SESSIONS", "7")
    assert ignored(Settings(max_sessions=7)) == ignored(Settings()) == ignored(None) == []


def test_settings_are_equal_wherever_they_come_from(monkeypatch):
    in_code = Settings(max_sessions=7)
    monkeypatch.setenv("CLOSECODES_MAX_SESSIONS", "7")
    assert in_code == Settings()
    assert in_code.model_dump() == Settings().model_dump()
    assert hash(in_code) == hash(Settings())


def test_variable_is_told_without_its_value(monkeypatch, caplog):
    monkeypatch.setenv("CLOSECODES_REDIS_URL", f"redis://:{SECRET}@a")
    Guard(Settings(redis_url="redis://b"))
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage() == (
        "CLOSECODES_REDIS_URL has no effect: it is given in code too, which comes first: take one of the two away"
    )
    assert getattr(record, "event.name") == "closecodes.config.ignored"
    assert SECRET not in str(vars(record))


# Guards that no middleware has


async def endpoint(websocket):
    await websocket.accept()


async def visit(app):
    await Peer(path="/").visit(app)


LIMITED = [{"settings": Settings(max_sessions=1)}, {"gate": MaxSessions(1)}]


@pytest.mark.anyio
@pytest.mark.parametrize("parts", LIMITED)
async def test_guard_that_no_middleware_has_says_so(parts):
    seen = []
    guard = Guard(**parts, observers=[seen.append])
    app = CloseCodeMiddleware(Handler())
    for _ in range(3):
        await visit(app)
    [told] = events_of(SettingIgnored, seen)
    assert told.name in {"Guard(max_sessions=1)", "Guard(gate=MaxSessions)"}
    assert "CloseCodeMiddleware(app, guard=guard)" in told.problem
    assert len(guard.sessions) == 0


@pytest.mark.anyio
async def test_guard_says_so_when_an_application_starts():
    seen = []
    forgotten = Guard(Settings(max_sessions=1), observers=[seen.append])
    for _ in range(2):
        async with CloseCodeMiddleware(Handler()).guard.lifespan():
            assert len(events_of(SettingIgnored, seen)) == 1
    assert not forgotten.sessions


@pytest.mark.anyio
async def test_guard_that_a_middleware_gets_later_is_silent():
    """Starlette builds the middleware of an application below another one at its first call."""
    seen = []
    guards = [Guard(Settings(max_sessions=1), observers=[seen.append]) for _ in range(4)]
    below = Starlette(routes=[WebSocketRoute("/", endpoint)])
    below.add_middleware(CloseCodeMiddleware, guard=guards[1])
    positional = Starlette(middleware=[Middleware(CloseCodeMiddleware, guards[2])])
    routed = WebSocketRoute("/", endpoint, middleware=[Middleware(CloseCodeMiddleware, guard=guards[3])])
    app = Starlette(
        routes=[routed, Mount("/below", below), Mount("/positional", positional)],
        middleware=[Middleware(CloseCodeMiddleware, guard=guards[0])],
    )
    await visit(app)
    async with guards[0].lifespan():
        assert events_of(SettingIgnored, seen) == []


@pytest.mark.anyio
async def test_guard_without_limits_is_silent():
    seen = []
    guard = Guard(observers=[seen.append])
    await visit(CloseCodeMiddleware(Handler()))
    guard.snapshot()
    assert events_of(SettingIgnored, seen) == []


@pytest.mark.anyio
async def test_guard_without_limits_is_searched_for_nowhere(monkeypatch):
    """That looks at every object there is, at the first session of each other guard."""
    searched = []
    monkeypatch.setattr(unused, "_waiting", lambda: searched.append(1) or [])
    guard = Guard()
    await visit(CloseCodeMiddleware(Handler()))
    assert (searched, guard.has_limits) == ([], False)


@pytest.mark.anyio
@pytest.mark.parametrize("is_used", [False, True])
async def test_status_of_a_guard_without_middleware_says_so(is_used):
    seen = []
    guard = Guard(Settings(max_sessions=5), observers=[seen.append])
    if is_used:
        CloseCodeMiddleware(Handler(), guard)
    status = StatusApp(guard, authorize=lambda request: True)
    for _ in range(2):
        sent = await get(status)
        assert sent[0]["status"] == 200
    assert [event.name for event in events_of(SettingIgnored, seen)] == ([] if is_used else ["Guard(max_sessions=5)"])


# Limits that were set before anybody could read them


@pytest.fixture
def quiet():
    """Logging as it is in a new process, without the handlers of the tests."""
    names = ("", "asgi_closecodes", "asgi_closecodes.config")
    loggers = [logging.getLogger(name) for name in names]
    kept = [(one, one.level, one.handlers[:], one.propagate) for one in loggers]
    for one in loggers:
        one.handlers.clear()
        one.setLevel(logging.WARNING if one.name == "root" else logging.NOTSET)
    yield
    for one, level, handlers, propagate in kept:
        one.setLevel(level)
        one.handlers[:] = handlers
        one.propagate = propagate


def limits(stream):
    records = map(json.loads, stream.getvalue().splitlines())
    return [record["closecodes.limit.max_sessions"] for record in records if "limits" in record["event.name"]]


def test_limits_are_told_when_logging_is_configured(quiet):
    guard = Guard(Settings(max_sessions=5))
    for level, told in (("WARNING", []), ("INFO", [5]), ("INFO", [])):
        stream = io.StringIO()
        configure_logging("json", stream=stream, level=level)
        assert limits(stream) == told
    guard.update(max_sessions=7)
    assert limits(stream) == [7]


@pytest.mark.anyio
async def test_limits_are_told_when_the_application_starts(quiet):
    guard = Guard(Settings(max_sessions=5))
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    for _ in range(2):
        async with guard.lifespan():
            pass
    assert stream.getvalue().count("limits set: max_sessions=5") == 1


# A cause that was meant


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("refusal", "cause", "reason"),
    [
        (TryAgainLater("database"), "database", "database; retry_after=1.0"),
        (TryAgainLater("database", cause="pool"), "pool", "database; retry_after=1.0; cause=pool"),
        (TryAgainLater("the database is slow"), "unknown", "the database is slow; retry_after=1.0"),
        (TryAgainLater(""), "unknown", "; retry_after=1.0"),
    ],
)
async def test_single_token_is_the_cause(refusal, cause, reason):
    refusal.retry_after = 1

    class Full:
        def admit(self, _session):
            raise refusal

    seen = []
    peer = await Peer().visit(CloseCodeMiddleware(Handler(), gate=Full(), observers=[seen.append]))
    [refused] = events_of(SessionRefused, seen)
    assert refused.cause == cause
    assert peer.closed == (1013, reason)
