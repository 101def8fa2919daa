"""How handshakes are rejected: the setting ``reject_with``, its flood limit, and closes before accept."""

import pytest

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Guard, Settings, TryAgainLater
from asgi_closecodes.events import CallbackFailed, SessionClosed, SessionOpened, SessionRefused
from tests.support.asgi import Handler, Peer, events_of

pytestmark = pytest.mark.anyio

FULL = {"max_sessions": 0}


class Full:
    """A server whose gates or handlers reject everybody."""

    def __init__(self, app=None, **settings):
        self.events = []
        self.guard = Guard(Settings(**settings), observers=[self.events.append])
        self.app = CloseCodeMiddleware(app or Handler(), self.guard)

    async def visit(self, **scope):
        """Return how the handshake was rejected: the close code, or the HTTP status."""
        peer = await Peer(**scope).visit(self.app)
        if peer.heard == ["close"]:
            return 403
        return peer.closed[0] if "accept" in peer.heard else peer.status


def headers(**values):
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in values.items()]


async def crash(scope, receive, send):
    raise ValueError("text")


def closing(*close):
    async def handler(scope, receive, send):
        await receive()
        await send({"type": "websocket.close", **dict(zip(("code", "reason"), close, strict=False))})

    return handler


async def test_auto_is_the_default_and_closes():
    assert Settings().reject_with == "auto"
    server = Full(**FULL)
    assert [await server.visit() for _ in range(5)] == [1013, 1013, 1013, 503, 503]
    assert [event.mode for event in events_of(SessionRefused, server.events)] == ["close"] * 3 + ["http"] * 2


@pytest.mark.parametrize(
    "scope",
    [
        {"query_string": b"EIO=4&transport=websocket"},
        {"query_string": b"transport=websocket&EIO=4"},
        {"http_version": "2"},
        {"http_version": "2", "subprotocols": ["graphql-ws"]},
    ],
    ids=str,
)
async def test_auto_uses_http_where_a_close_does_harm(scope):
    assert await Full(**FULL).visit(**scope) == 503
    assert await Full(crash).visit(**scope) == 500
    assert await Full(closing(4401), deliver_early_closes=True).visit(**scope) == 403


@pytest.mark.parametrize("query", [b"", b"NEIO=4", b"a=EIO"])
async def test_auto_closes_where_a_query_looks_like_engine_io(query):
    assert await Full(**FULL).visit(query_string=query) == 1013


async def test_auto_closes_for_200_browsers_behind_one_address():
    server = Full(**FULL)
    for number in range(190):  # the flood limit is for another test
        assert await server.visit(headers=headers(cookie=f"session={number}", user_agent="Browser")) == 1013


async def test_client_that_obeys_is_always_told_the_code():
    async def refuse(scope, receive, send):
        raise TryAgainLater(retry_after=0)

    server = Full(refuse)
    assert {await server.visit() for _ in range(20)} == {1013}


@pytest.mark.parametrize(("app", "code"), [(crash, 1011), (closing(4401), 4401)], ids=["crash", "early close"])
async def test_crash_and_early_close_enter_no_table(app, code):
    server = Full(app, deliver_early_closes=True)
    assert [await server.visit() for _ in range(9)] == [code] * 9
    server.guard.update(max_sessions=0)
    assert [await server.visit() for _ in range(4)] == [1013] * 3 + [503]
    server.guard.update(max_sessions=None)
    assert await server.visit() == code


async def test_deliberate_close_before_accept_enters_no_table():
    async def handler(scope, receive, send):
        raise CloseWith(4401, "sign in")

    server = Full(handler)
    assert {await server.visit() for _ in range(9)} == {4401}


async def test_server_without_responses_closes():
    server = Full(**FULL, reject_with="http", max_refusals_per_second=0)
    assert [await server.visit(extensions={}) for _ in range(5)] == [1013] * 5


@pytest.mark.parametrize(("reject_with", "code"), [("close", 1013), ("http", 503)])
async def test_fixed_way_looks_at_no_page(reject_with, code, monkeypatch):
    monkeypatch.setattr("asgi_closecodes.guard.rejection.page_of", None)
    server = Full(**FULL, reject_with=reject_with)
    assert [await server.visit() for _ in range(9)] == [code] * 9


async def test_admitted_session_looks_at_no_page(monkeypatch):
    monkeypatch.setattr("asgi_closecodes.guard.rejection.page_of", None)
    peer = await Peer().visit(Full().app)
    assert peer.heard == ["accept"]


@pytest.mark.parametrize("reject_with", ["auto", "close"])
async def test_flood_falls_back_to_http_and_graphql_later(reject_with):
    server = Full(**FULL, reject_with=reject_with, max_refusals_per_second=5)
    forged = [await server.visit(headers=headers(cookie=f"c={number}")) for number in range(9)]
    assert forged[:5] == [1013] * 5
    assert forged[6:] == [503] * 3
    for offered in (["graphql-transport-ws"], ["chat", "graphql-ws"]):
        assert await server.visit(subprotocols=offered) == 1013
    graphql = [await server.visit(subprotocols=["graphql-ws"]) for _ in range(9)]
    assert graphql[:3] == [1013] * 3
    assert graphql[-3:] == [503] * 3


async def test_no_limit_of_refusals_closes_always():
    server = Full(**FULL, max_refusals_per_second=None)
    assert {await server.visit(headers=headers(cookie=f"c={number}")) for number in range(500)} == {1013}


async def test_graphql_client_is_no_page_that_hammers():
    """Several of them in one page look alike, and a response by HTTP would be fatal to each."""
    server = Full(**FULL)
    assert {await server.visit(subprotocols=["graphql-transport-ws"]) for _ in range(20)} == {1013}


async def test_function_of_the_session_chooses():
    server = Full(
        **FULL, reject_with=lambda session: "close" if dict(session.scope["headers"]).get(b"origin") else "http"
    )
    assert await server.visit() == 503
    assert [await server.visit(headers=headers(origin="https://example.org")) for _ in range(5)] == [1013] * 5
    server.guard.update(reject_with=lambda session: "http" if session.scope["path"] == "/raw" else "close")
    assert await server.visit(path="/raw") == 503
    assert await server.visit() == 1013


async def choose(session):
    return "http"


@pytest.mark.parametrize(
    "function",
    [lambda session: 1 / 0, lambda session: "auto", lambda session: None, lambda session: [], choose, lambda: "http"],
    ids=["raises", "auto", "None", "a list", "async", "takes none"],
)
async def test_function_that_fails_is_told_once_and_closes(function):
    server = Full(**FULL, reject_with=function)
    assert [await server.visit() for _ in range(5)] == [1013] * 5
    [failed] = events_of(CallbackFailed, server.events)
    assert failed.callback == "reject_with"


# deliver_early_closes


@pytest.mark.parametrize("deliver", [False, True])
async def test_early_close_is_delivered_where_it_is_set(deliver):
    server = Full(closing(4401, "sign in"), deliver_early_closes=deliver)
    peer = await Peer(subprotocols=["chat", "v2"]).visit(server.app)
    if not deliver:
        assert peer.heard == ["close"]
        return
    assert peer.heard == ["accept", "close"]
    assert peer.closed == (4401, "sign in")
    assert peer.sent[0]["subprotocol"] == "chat"
    [closed] = events_of(SessionClosed, server.events)
    assert (closed.close.code, closed.closed_by, closed.outcome) == (4401, "handler", "not_accepted")
    assert not events_of(SessionOpened, server.events)


async def test_early_close_is_made_sendable():
    server = Full(closing(1006, ["a list"]), deliver_early_closes=True)
    peer = await Peer().visit(server.app)
    assert peer.closed == (1011, "['a list']")


@pytest.mark.parametrize("close", [(), (1000,), (None, None), (1000, "")], ids=str)
async def test_plain_close_stays_a_failed_handshake(close):
    """Frameworks close like that what they have no route for."""
    server = Full(closing(*close), deliver_early_closes=True)
    assert await server.visit() == 403


async def test_early_close_by_http_stays_403():
    server = Full(closing(4401), deliver_early_closes=True, reject_with="http")
    assert await server.visit() == 403
    server.guard.update(reject_with="close", max_refusals_per_second=0)
    assert await server.visit() == 403


async def test_early_close_of_a_session_that_was_shed_is_not_accepted():
    async def handler(scope, receive, send):
        await receive()
        await scope["extensions"]["closecodes"].shed("test")
        await send({"type": "websocket.close", "code": 4401})

    peer = await Peer().visit(Full(handler, deliver_early_closes=True).app)
    assert peer.heard == ["accept", "close"]
    assert peer.closed[0] == 1013


async def test_update_delivers_early_closes():
    server = Full(closing(4401))
    assert await server.visit() == 403
    server.guard.update(deliver_early_closes=True)
    assert await server.visit() == 4401
