"""What a test sees of an application on a real server."""

import socket
import threading

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, TryAgainLater
from asgi_closecodes.testing import records, serve
from asgi_closecodes.testing import server as running_server

SERVERS = ["uvicorn", "hypercorn"]


async def number(websocket):
    await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
    await websocket.send_text("ready")
    async for text in websocket.iter_text():
        await websocket.send_text(str(1 / float(text)))


async def busy(websocket):
    raise TryAgainLater(cause="database", retry_after=7)


async def deny(websocket):
    await websocket.send_denial_response(PlainTextResponse("no", status_code=451))


def app(*middleware, **options):
    routes = [WebSocketRoute(f"/{handler.__name__}", handler) for handler in (number, busy, deny)]
    return Starlette(routes=routes, middleware=list(middleware), **options)


def wrapped(*, lifespan=None, **settings):
    return app(Middleware(CloseCodeMiddleware, guard=Guard(Settings(**settings))), lifespan=lifespan)


@pytest.fixture(params=SERVERS)
def server(request):
    with serve(wrapped(), request.param) as running:
        yield running


def test_crash_is_its_close_and_its_record(server):
    client = server.connect("/number", subprotocols=["v1"])
    assert client.subprotocol == "v1"
    assert client.receive() == "ready"
    client.send("4")
    assert client.receive() == "0.25"
    client.send("x")
    close = client.wait_closed()
    assert (close.code, close.status, close.messages) == (1011, None, ())
    assert close.reason == f"internal error; ref={close.ref}"
    assert close.record["closecodes.error.id"] == close.ref
    assert close.record["exception.type"] == "ValueError"
    assert "float(text)" in close.record["exception.stacktrace"]
    assert close.hint is close.cause is None


def test_refusal_has_a_hint_and_a_cause(server):
    close = server.connect("/busy").wait_closed()
    assert (close.code, close.hint, close.cause, close.ref) == (1013, 7.0, "database", None)
    with pytest.raises(LookupError, match="has no ref"):
        _ = close.record


def test_response_has_a_status_and_no_code(server):
    client = server.connect("/deny")
    client.send("nobody hears it")
    close = client.wait_closed()
    assert (close.code, close.status, close.reason) == (None, 451, "no")
    with pytest.raises(ConnectionError, match="HTTP 451"):
        client.receive()


@pytest.mark.parametrize("server", SERVERS)
def test_retry_after_header_is_a_hint(server):
    with serve(wrapped(reject_with="http", max_sessions=0), server) as running:
        close = running.connect("/number").wait_closed()
    assert (close.status, close.cause) == (503, "full")
    assert close.hint is not None


def test_receive_of_a_crashed_session_shows_its_trace(server):
    client = server.connect("/number")
    client.send("x")
    assert client.receive() == "ready"
    with pytest.raises(ConnectionError, match="close 1011 'internal error; ref=") as ended:
        client.receive()
    assert "float(text)" in ended.value.__notes__[0]


def test_session_that_stays_open_is_a_time_out(server):
    client = server.connect("/number")
    with pytest.raises(TimeoutError, match="/number is still open after 0.2 s; received: \\['ready'\\]"):
        client.wait_closed(0.2)
    with pytest.raises(TimeoutError, match="no message from /number"):
        client.receive(0.1)


def test_bare_application_is_seen_as_it_is():
    with serve(app()) as running:
        client = running.connect("/number")
        client.send("x")
        assert client.wait_closed().code == 1006
        assert client.wait_closed().messages == ()


def test_session_holds_its_permit_until_it_is_closed():
    with serve(wrapped(max_sessions=1)) as running:
        with running.connect("/number") as first:
            assert first.receive() == "ready"
            assert running.connect("/number").wait_closed().cause == "full"
        assert running.connect("/number").receive() == "ready"


def test_record_that_was_counted_instead_says_so(monkeypatch):
    monkeypatch.setattr(records, "RECORD_TIMEOUT_S", 0.1)
    with serve(wrapped(log_burst=1)) as running:
        closes = []
        for _ in range(2):
            client = running.connect("/number")
            client.send("x")
            closes.append(client.wait_closed())
        assert closes[0].record["exception.type"] == "ValueError"
        with pytest.raises(LookupError, match="log_burst=None"):
            _ = closes[1].record


@pytest.mark.parametrize("server", SERVERS)
def test_application_that_does_not_start_is_an_error(server):
    def lifespan(_app):
        raise ZeroDivisionError("cannot start")

    with pytest.raises(RuntimeError, match="did not start"), serve(wrapped(lifespan=lifespan), server):
        pytest.fail("it is served")


def test_unknown_server_is_named():
    with pytest.raises(ValueError, match="server='daphne': use uvicorn or hypercorn"), serve(wrapped(), "daphne"):
        pytest.fail("it is served")


def test_handler_that_blocks_is_an_error(monkeypatch):
    monkeypatch.setattr(running_server, "JOIN_TIMEOUT_S", 0.1)
    released = threading.Event()

    async def block(scope, receive, send):
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            released.wait(10)

    with pytest.raises(RuntimeError, match="does not stop"), serve(block, lifespan="off") as running:
        running.connect()
    released.set()
    for thread in threading.enumerate():
        if thread.name == "asgi_closecodes.testing":
            thread.join()


@pytest.mark.parametrize("server", SERVERS)
def test_serve_that_ends_leaves_nothing(server):
    with serve(wrapped(), server) as running:
        address = running.host, running.port
        client = running.connect("/number")
    assert client.wait_closed().code in {1000, 1001, 1012}
    with socket.socket() as free:
        assert free.connect_ex(address) != 0
