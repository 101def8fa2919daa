"""Exceptions that only say that there is no route; and HTTP responses of handlers as they come."""

import anyio
import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.events import RouteNotFound, SessionClosed, SessionFailed
from asgi_closecodes.session.not_found import says_not_found
from asgi_closecodes.session.protocol import MAX_HELD_BYTES
from tests.support.asgi import Peer, events_of

pytestmark = pytest.mark.anyio

CHANNELS = """
class URLRouter:
    async def __call__(self, scope, receive, send):
        route(self)
        raise ValueError("No route found for path 'x'.")

def route(router):
    if getattr(router, "is_broken", False):
        raise ValueError("No route found for path 'x'.")
"""


def router(module="channels.routing"):
    names = {"__name__": module}
    exec(CHANNELS, names)
    return names["URLRouter"]()


class NotFound(Exception):
    __module__ = "sanic.exceptions"


class NoRoom(NotFound):
    __module__ = "app"


def raising(error, *, accept=False):
    async def app(scope, receive, send):
        await receive()
        if accept:
            await send({"type": "websocket.accept"})
        raise error

    return app


async def visit(app, *, settings=None, exceptions=None, **scope):
    seen = []
    guard = Guard(settings or Settings(), exceptions=exceptions, observers=[seen.append])
    peer = await Peer(**scope).visit(CloseCodeMiddleware(app, guard))
    return peer, seen


@pytest.mark.parametrize("handshake", ["close", "http", "auto"])
@pytest.mark.parametrize(
    "app",
    [
        router(),
        raising(NotFound("x")),
        raising(NoRoom("x")),
        raising(ExceptionGroup("", [NotFound(), ExceptionGroup("", [NoRoom()])])),
    ],
)
async def test_no_route_is_404_and_no_error(app, handshake):
    peer, seen = await visit(app, settings=Settings(reject_with=handshake, reraise=True))
    assert (peer.heard, peer.status) == (["http.response.start", "http.response.body"], 404)
    assert events_of(SessionFailed, seen) == []
    assert len(events_of(RouteNotFound, seen)) == len(events_of(SessionClosed, seen)) == 1


async def test_no_route_without_the_extension_is_a_reject():
    peer, _ = await visit(router(), extensions={})
    assert peer.sent == [{"type": "websocket.close"}]


@pytest.mark.parametrize(
    "app",
    [
        router("channels.other"),
        router("myapp.channels.routing"),
        raising(NotFound("x"), accept=True),
        raising(ExceptionGroup("", [NotFound(), ValueError()])),
        raising(ValueError("No route found for path 'x'.")),
    ],
)
async def test_like_error_raised_by_others_is_a_failure(app):
    peer, seen = await visit(app)
    assert peer.closed[0] == 1011
    assert len(events_of(SessionFailed, seen)) == 1
    assert events_of(RouteNotFound, seen) == []


async def test_error_raised_below_the_router_is_a_failure():
    broken = router()
    broken.is_broken = True
    peer, _ = await visit(broken)
    assert peer.closed[0] == 1011


async def test_mapping_of_the_user_comes_first():
    peer, _ = await visit(router(), exceptions={ValueError: 4000})
    assert peer.closed[0] == 4000


def test_exception_that_nobody_raised_says_nothing():
    assert not says_not_found(ValueError())


@pytest.mark.parametrize("status", [401, 404, 500])
async def test_plain_http_response_is_a_denial(status):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"why"})

    peer, seen = await visit(app)
    assert (peer.heard, peer.status) == (["http.response.start", "http.response.body"], status)
    assert events_of(SessionFailed, seen) == []
    assert len(events_of(RouteNotFound, seen)) == (status == 404)


class OneBody(Peer):
    """A server that takes a denial's body in one message only, as granian."""

    async def send(self, message):
        if message.get("more_body"):
            raise RuntimeError("Unsupported ASGI message")
        await super().send(message)


def denying(*parts, end=True):
    async def app(scope, receive, send):
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        for part in parts:
            await send({"type": "websocket.http.response.body", "body": part, "more_body": True})
        if end:
            await send({"type": "websocket.http.response.body"})

    return app


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("parts", [(b"a",), (b"a", b"", b"b"), (b"x" * 1000,) * 100, (b"",)])
async def test_parts_are_one_where_a_server_wants_one(parts, end):
    seen = []
    guard = Guard(observers=[seen.append])
    peer = await OneBody().visit(CloseCodeMiddleware(denying(*parts, end=end), guard))
    assert peer.heard == ["http.response.start", "http.response.body"]
    assert peer.sent[1]["body"] == b"".join(parts)
    assert events_of(SessionFailed, seen) == []


async def test_parts_are_left_alone_where_a_server_takes_them():
    peer, _ = await visit(denying(b"a", b"b"))
    assert [message.get("body") for message in peer.sent] == [None, b"a", b"b", None]


async def test_parts_without_an_end_are_bounded():
    held = []

    async def app(scope, receive, send):
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        while True:
            held.append(1)
            await send({"type": "websocket.http.response.body", "body": b"x" * 65536, "more_body": True})

    seen = []
    with anyio.fail_after(10):
        await OneBody().visit(CloseCodeMiddleware(app, Guard(observers=[seen.append])))
    assert len(held) == MAX_HELD_BYTES // 65536 + 1
    assert len(events_of(SessionFailed, seen)) == 1


async def test_peer_that_left_uvicorn_s_old_way_has_left():
    class Legacy(Peer):
        async def send(self, message):
            if message["type"] == "websocket.close":
                return object.__new__(Legacy).transfer_data_task
            await super().send(message)
            return None

    for app in (raising(ValueError(), accept=True), accept_and_close):
        seen = []
        await Legacy().visit(CloseCodeMiddleware(app, Guard(observers=[seen.append])))
        [closed] = events_of(SessionClosed, seen)
        assert (closed.close.code, closed.closed_by) == (1006, "client")
        assert len(events_of(SessionFailed, seen)) == (app is not accept_and_close)


async def accept_and_close(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 4000})
