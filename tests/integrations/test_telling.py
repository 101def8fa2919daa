"""``tell_session`` and the wrapped handlers of python-socketio, without a server."""

import inspect

import anyio
import pytest

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Guard, Settings
from asgi_closecodes.integrations import tell_session
from tests.support.asgi import Peer
from tests.support.programs import module

pytestmark = pytest.mark.anyio


class Request:
    def __init__(self, scope):
        self.scope = scope


async def close_of(call):
    """Return how a session ends whose application catches what ``call(request)`` raises."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await call(Request(scope))
        except Exception:
            await send({"type": "websocket.close", "code": 4500})

    peer = Peer()
    await peer.visit(CloseCodeMiddleware(app, Guard(Settings())))
    return peer.closed


@tell_session
async def handler(text, request, error):
    await anyio.sleep(0)
    raise error


async def test_tell_session_finds_it_among_the_arguments():
    assert (await close_of(lambda request: handler("x", request, ValueError("secret"))))[0] == 1011
    assert await close_of(lambda request: handler("x", error=CloseWith(4001), request=request)) == (4001, "")


async def test_tell_session_exception_travels_on():
    for scope in ({"type": "http"}, None):
        with pytest.raises(ValueError, match="secret"):
            await handler("x", Request(scope), ValueError("secret"))
    with pytest.raises(ValueError, match="secret"):
        await handler("x", None, ValueError("secret"))


def test_tell_session_keeps_name_and_signature():
    """Frameworks inject by them."""
    assert handler.__name__ == "handler"
    assert [*inspect.signature(handler).parameters] == ["text", "request", "error"]
    assert inspect.iscoroutinefunction(handler)


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def legacy(sid):
    raise LookupError


@pytest.mark.parametrize(
    ("event", "arguments", "error"),
    [
        ("connect", ("sid", {"asgi.scope": {}}, None), "framework"),  # python-socketio tries again without the last
        ("connect", ("sid", {"asgi.scope": {}}), "framework"),  # or with it, in older ones
        ("connect", ("sid", {}, {"token": 7}), TypeError),
        ("disconnect", ("sid", "reason"), "framework"),
        ("message", ("sid", "too many"), TypeError),
        ("message", ("sid",), LookupError),
    ],
)
async def test_socketio_call_with_fewer_arguments_is_no_failure(event, arguments, error):
    module("socketio")
    from socketio import AsyncServer

    from asgi_closecodes.integrations import socketio

    async def call(request):
        connection = socketio._Connection(request.scope["extensions"]["closecodes"], None)
        token = socketio._current.set(lambda: connection)
        try:
            await socketio._Reporter(AsyncServer(async_mode="asgi"), Guard()).wrap(legacy, event)(*arguments)
        finally:
            socketio._current.reset(token)

    code, _ = await close_of(call)
    assert code == (4500 if error == "framework" else 1011)


@pytest.mark.parametrize(
    ("message", "ends"),
    [
        ({"text": "2"}, False),
        ({"text": '42["x"]'}, False),
        ({"text": '44{"message":"no"}'}, True),
        ({"bytes": b"4"}, True),
    ],
)
async def test_socketio_refused_session_ends_once_it_is_told(message, ends):
    """Pings and events of other namespaces may come in between. msgpack makes bytes of each packet."""
    module("socketio")
    from asgi_closecodes.integrations import socketio

    async def call(request):
        async def send(message):
            await anyio.lowlevel.checkpoint()

        connection = socketio._Connection(request.scope["extensions"]["closecodes"], send)
        connection.refused_by = CloseWith(4001)
        await connection.send({"type": "websocket.send", **message})

    assert (await close_of(call))[0] == (4001 if ends else 1000)
