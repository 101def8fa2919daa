"""Errors and logs name what users plug in, and show nothing of what it holds."""

import functools
import traceback

import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, SettingsError, StatusApp
from asgi_closecodes.client import connect
from asgi_closecodes.exceptions import TryAgainLater, checked_mapping
from asgi_closecodes.gates import (
    ClusterSessions,
    ClusterSessionsPerKey,
    HandshakeRate,
    HandshakesInProgress,
    MaxSessions,
    MaxSessionsPerKey,
    Memory,
    Pressure,
)
from asgi_closecodes.logs import configure_logging
from asgi_closecodes.naming import name_of, shown
from tests.support.asgi import Handler, Peer

SECRET = "hunter2"
URL = f"redis://:{SECRET}@localhost:6379/0"


def post(event, api_key=None):
    raise ValueError


class Teller:
    def __init__(self, key=SECRET):
        self.key = key

    def __repr__(self):
        return f"Teller({self.key})"

    def tell(self, event):
        raise ValueError

    def __call__(self, event):
        raise ValueError


def lies(cls):
    raise RuntimeError(SECRET)


Liar = type("Liar", (type,), {"__name__": property(lies), "__module__": property(lies)})
Liar.__qualname__ = "Liar"


class Hostile(metaclass=Liar):
    __class__ = property(lambda self: 1 / 0)

    def __getattribute__(self, name):
        raise RuntimeError(SECRET)


def named(name):
    def function(event):
        raise ValueError

    function.__qualname__ = name
    return function


HERE = __name__


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (post, f"{HERE}.post"),
        (functools.partial(post, api_key=SECRET), f"{HERE}.post"),
        (functools.partial(Teller().tell), f"{HERE}.Teller.tell"),
        (functools.partial(Teller(), api_key=SECRET), f"{HERE}.Teller"),
        (Teller().tell, f"{HERE}.Teller.tell"),
        (Teller(), f"{HERE}.Teller"),
        (Teller, f"{HERE}.Teller"),
        (lambda event: SECRET, f"{HERE}.<lambda>"),
        (print, "print"),
        ([].append, "list.append"),
        ({"password": SECRET}, "dict"),
        (Hostile(), f"{HERE}.Hostile"),
        (Hostile, f"{HERE}.Hostile"),
        (named("a\nb\x1b[0m"), f"{HERE}.a\\nb\\x1b[0m"),
        (named("x" * 5000), f"{HERE}.{'x' * 5000}"[:200]),
    ],
    ids=lambda thing: thing if type(thing) is str else "",
)
def test_name_is_qualified_and_says_nothing_else(thing, name):
    assert name_of(thing) == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (10**5000, "<int>"),
        (10**100, f"1{'0' * 78}…"),
        (0.5, "0.5"),
        (True, "True"),
        (None, "None"),
        ("word", "'word'"),
        (URL, f"<str of {len(URL)} characters>"),
        ("x" * 100, "<str of 100 characters>"),
        ({"password": SECRET}, "<dict object>"),
        ([SECRET], "<list object>"),
        (SECRET.encode(), "<bytes object>"),
        (Teller(), f"<{HERE}.Teller object>"),
        (MaxSessions, "<class 'asgi_closecodes.gates.sessions.MaxSessions'>"),
        (functools.partial(post, api_key=SECRET), f"{HERE}.post"),
    ],
    ids=lambda value: value if type(value) is str else "",
)
def test_value_is_shown_where_it_can_hold_no_secret(value, text):
    assert shown(value) == text


HOLDERS = [
    {"redis_url": URL},
    [URL],
    URL,
    Teller(),
    Hostile(),
    functools.partial(post, api_key=SECRET),
    SECRET.encode(),
]
USES = {
    "guard": lambda value: CloseCodeMiddleware(Handler(), value),
    "settings": lambda value: Guard(value),
    "gate": lambda value: Guard(Settings(), gate=value),
    "observers": lambda value: Guard(Settings(), observers=[value]),
    "exceptions": lambda value: checked_mapping({ValueError: value}),
    "exceptions_key": lambda value: checked_mapping(
        {str(id(value)): 1000, (value if isinstance(value, str) else 5): 1}
    ),
    "limit": MaxSessions,
    "limit_per_key": MaxSessionsPerKey,
    "key": lambda value: MaxSessionsPerKey(5, key=value),
    "reserve": lambda value: MaxSessions(5, reserve={"high": value}),
    "handshakes": HandshakesInProgress,
    "rate": HandshakeRate,
    "memory": Memory,
    "pressure": lambda value: Pressure(Memory(2**30), value, value),
    "cluster_limit": lambda value: ClusterSessions(value, 100),
    "cluster_name": lambda value: ClusterSessions(5, "redis://localhost", value),
    "cluster_url": lambda value: ClusterSessions(5, value if isinstance(value, str) else 5, 5),
    "cluster_per_key": lambda value: ClusterSessionsPerKey(value, "redis://localhost"),
    "fallback": lambda value: ClusterSessions(5, "redis://localhost", fallback=value),
    "cause": lambda value: TryAgainLater(cause=value),
    "retry_after": lambda value: TryAgainLater(retry_after=value),
    "format": lambda value: configure_logging(value),
    "level": lambda value: configure_logging(level=value),
    "authorize": lambda value: StatusApp(Guard(Settings()), authorize=value),
    "on_event": lambda value: connect("ws://localhost", on_event=value),
    **{
        name: lambda value, name=name: Settings(**{name: value})
        for name, field in Settings.model_fields.items()
        if name != "redis_url"
    },
}


@pytest.mark.parametrize("use", USES)
def test_error_holds_no_secret_of_what_it_refuses(use):
    for holder in HOLDERS:
        try:
            USES[use](holder)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            if _is_ours(error):
                assert SECRET not in f"{error} {error.args}", type(holder)


def _is_ours(error):
    """Whether this package raised it: what Python says of a type that does not fit is none of its texts."""
    last = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return last.f_globals["__name__"].startswith("asgi_closecodes")


@pytest.mark.anyio
async def test_observer_that_fails_is_logged_by_its_name(caplog):
    observers = [functools.partial(post, api_key=SECRET), Teller(), Teller().tell, named("told")]
    guard = Guard(Settings(), observers=observers)
    await Peer().visit(CloseCodeMiddleware(Handler(), guard))
    said = [record.getMessage() for record in caplog.records if "observer" in record.getMessage()]
    for name in ("post", "Teller", "Teller.tell", "told"):
        assert any(f"observer {HERE}.{name} " in f"{text} " for text in said), (name, said)
    assert SECRET not in " ".join(said)


@pytest.mark.anyio
@pytest.mark.parametrize("code", [URL, Teller(), {"password": SECRET}])
async def test_code_that_is_none_is_logged_by_its_kind(caplog, code):
    async def app(_scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": code})

    peer = await Peer().visit(CloseCodeMiddleware(app, Guard(Settings())))
    assert peer.closed[0] == 1011
    assert "which must not be sent; sent 1011" in caplog.text
    assert SECRET not in caplog.text


UNUSABLE = [
    f"http://:{SECRET}@localhost",
    f"redis://:{SECRET}@localhost:port",
    f"redis://:{SECRET}@",
    f"redis://:{SECRET}@localhost/{SECRET}",
    f"redis://:{SECRET}@localhost?unknown={SECRET}",
    f"redis://:{SECRET}@localhost?socket_timeout={SECRET}",
    f"redis://localhost:{SECRET}",
    f"{SECRET}",
    f"redis+cluster://:{SECRET}@localhost/1",
]


def change(url):
    Guard(Settings()).update(redis_url=url)


def from_the_environment(url):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOSECODES_REDIS_URL", url)
        Settings()


@pytest.mark.parametrize("url", UNUSABLE)
@pytest.mark.parametrize("build", [lambda url: Settings(redis_url=url), change, from_the_environment])
def test_no_url_can_be_reached_from_a_settings_error(url, build):
    """Neither from its chain of causes, nor from a local variable in its traceback, which Sentry sends."""
    with pytest.raises(SettingsError) as raised:
        build(url)
    assert not _reached(raised.value)


def test_valid_url_beside_a_wrong_value_cannot_be_reached():
    with pytest.raises(SettingsError) as raised:
        Settings(redis_url=URL, max_sessions=-1)
    assert not _reached(raised.value)


@pytest.mark.parametrize("url", UNUSABLE)
def test_gate_s_error_has_no_url_in_its_causes(url):
    with pytest.raises(ValueError) as raised:
        ClusterSessions(5, url)
    error = raised.value
    while error is not None:
        assert SECRET not in f"{error!r} {error.args}"
        error = error.__cause__ or error.__context__


def _reached(error):
    """Return where the secret is found: in an error, those it came out of, and what their frames of ours hold."""
    found = []
    pending = [error]
    while pending:
        one = pending.pop()
        pending += filter(None, (one.__cause__, one.__context__))
        seen = [one.args, str(one), vars(one)]
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if frame.f_globals["__name__"].startswith("asgi_closecodes"):
                seen += frame.f_locals.values()
        found += [text for text in map(str, seen) if SECRET in text]
    return found
