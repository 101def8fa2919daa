"""Starlette and FastAPI with the middleware: what behaves is left alone. In process; tests/servers has the wire."""

import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.events import SessionFailed
from tests.asgi import Handler, Peer, of

cleaned_up = []


async def resource():
    try:
        yield "a resource"
    finally:
        cleaned_up.append("a resource")


def fastapi(*middleware):
    app = FastAPI(middleware=list(middleware))

    @app.websocket("/echo")
    async def echo(websocket: WebSocket, found: str = Depends(resource)):
        await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
        async for text in websocket.iter_text():
            await websocket.send_text(f"{found}: {text}")

    @app.websocket("/number")
    async def number(websocket: WebSocket, n: int):
        await websocket.accept()
        await websocket.send_json({"n": n})
        await websocket.close()

    @app.websocket("/deny")
    async def deny(websocket: WebSocket):
        await websocket.send_denial_response(PlainTextResponse("no", status_code=451))

    @app.websocket("/http-exception")
    async def http_exception(websocket: WebSocket):
        raise HTTPException(418, "a teapot")

    @app.websocket("/websocket-exception")
    async def websocket_exception(websocket: WebSocket, found: str = Depends(resource)):
        await websocket.accept()
        raise WebSocketException(4004, "why")

    @app.websocket("/close-before-accept")
    async def close_before_accept(websocket: WebSocket):
        await websocket.close(4001, "no")

    @app.websocket("/update")
    async def change(websocket: WebSocket):
        await websocket.accept()

    return app


@pytest.fixture(params=["bare", "wrapped"])
def client(request):
    cleaned_up.clear()
    middleware = (
        [Middleware(CloseCodeMiddleware, settings=Settings(reraise=True))] if request.param == "wrapped" else []
    )
    with TestClient(fastapi(*middleware)) as client:
        yield client


def test_messages_subprotocols_and_clean_up(client):
    with client.websocket_connect("/echo", subprotocols=["one", "two"]) as websocket:
        assert websocket.accepted_subprotocol == "one"
        websocket.send_text("x")
        assert websocket.receive_text() == "a resource: x"
    assert cleaned_up == ["a resource"]


def test_a_close_of_the_handler(client):
    with client.websocket_connect("/number?n=5") as websocket:
        assert websocket.receive_json() == {"n": 5}
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()
    assert closed.value.code == 1000


def test_a_validation_error(client):
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/number?n=x"):
        pass
    assert closed.value.code == 1008


@pytest.mark.parametrize(("path", "status"), [("/deny", 451), ("/http-exception", 418)])
def test_a_denial(client, path, status):
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect(path):
        pass
    assert denied.value.status_code == status


def test_a_websocket_exception(client):
    with (
        client.websocket_connect("/websocket-exception") as websocket,
        pytest.raises(WebSocketDisconnect) as closed,
    ):
        websocket.receive_text()
    assert (closed.value.code, closed.value.reason) == (4004, "why")
    assert cleaned_up == ["a resource"]


def test_a_close_before_accept(client):
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/close-before-accept"):
        pass
    assert (closed.value.code, closed.value.reason) == (4001, "no")


def test_no_such_route(client):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/nowhere"):
        pass


# Where it may stand


async def crash(websocket):
    await websocket.accept()
    raise ValueError("a bug")


def routes(*middleware):
    return [WebSocketRoute("/crash/{name}", crash, middleware=middleware or None)]


def added(guard):
    app = Starlette(routes=routes())
    app.add_middleware(CloseCodeMiddleware, guard=guard)
    return app


PLACES = {
    "added": (added, "/crash/x", "/crash/{name}"),
    "in a list": (
        lambda guard: Starlette(routes=routes(), middleware=[Middleware(CloseCodeMiddleware, guard)]),
        "/crash/x",
        "/crash/{name}",
    ),
    "on a route": (
        lambda guard: Starlette(routes=routes(Middleware(CloseCodeMiddleware, guard))),
        "/crash/x",
        "/crash/{name}",
    ),
    "on a mount": (
        lambda guard: Starlette(
            routes=[Mount("/below", routes=routes(), middleware=[Middleware(CloseCodeMiddleware, guard)])]
        ),
        "/below/crash/x",
        "/crash/{name}",
    ),
    "above a mount": (
        lambda guard: CloseCodeMiddleware(Starlette(routes=[Mount("/below", routes=routes())]), guard),
        "/below/crash/x",
        "/below/crash/{name}",
    ),
    "around a plain application": (
        lambda guard: CloseCodeMiddleware(Handler(ValueError("a bug")), guard),
        "/crash/x",
        None,
    ),
    "twice": (
        lambda guard: CloseCodeMiddleware(CloseCodeMiddleware(Starlette(routes=routes()), guard), guard),
        "/crash/x",
        "/crash/{name}",
    ),
    "twice and telling each other": (
        lambda guard: CloseCodeMiddleware(
            CloseCodeMiddleware(Starlette(routes=routes()), settings=Settings(reraise=True)), guard
        ),
        "/crash/x",
        None,
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_wherever_it_stands_a_crash_is_one_close_and_one_event(place, caplog):
    build, path, route = PLACES[place]
    seen = []
    client = TestClient(build(Guard(Settings(), observers=[seen.append])))
    with client.websocket_connect(path) as websocket, pytest.raises(WebSocketDisconnect) as closed:
        websocket.receive_text()
    assert closed.value.code == 1011
    refs = [getattr(record, "closecodes.error.id", None) for record in caplog.records]
    assert closed.value.reason.removeprefix("internal error; ref=") in refs
    if place != "twice and telling each other":
        [failed] = of(SessionFailed, seen)
        assert failed.error_id in closed.value.reason
        assert failed.session.route == route


def test_with_reraise_the_exception_travels_on_after_the_close():
    client = TestClient(CloseCodeMiddleware(Starlette(routes=routes()), settings=Settings(reraise=True)))
    with pytest.raises(ValueError, match="a bug"), client.websocket_connect("/crash/x") as websocket:
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()
        assert closed.value.code == 1011


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["http", "lifespan"])
async def test_other_scopes_pass_through_untouched(kind):
    handed = []

    async def app(*arguments):
        handed.extend(arguments)

    arguments = ({"type": kind}, object(), object())
    await CloseCodeMiddleware(app, Guard(Settings()))(*arguments)
    assert all(one is other for one, other in zip(handed, arguments, strict=True))


@pytest.mark.anyio
async def test_the_server_s_scope_is_not_changed():
    peer = Peer()
    before = {**peer.scope, "extensions": dict(peer.scope["extensions"])}
    handler = Handler()
    await peer.visit(CloseCodeMiddleware(handler, Guard(Settings())))
    assert peer.scope == before
    assert handler.scopes[0]["extensions"]["closecodes"].id
    assert handler.scopes[0] is not peer.scope


def test_a_plain_function_in_a_thread_may_change_the_limits():
    guard = Guard(Settings(max_sessions=5, shed_rate=100))
    app = FastAPI(middleware=[Middleware(CloseCodeMiddleware, guard)])

    @app.get("/lower")
    def lower():
        guard.update(max_sessions=0, max_loop_lag=5)

    app.websocket("/echo")(echo_for_ever)
    with TestClient(app) as client, client.websocket_connect("/echo") as websocket:
        client.get("/lower")
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()
        assert closed.value.code == 1013


async def echo_for_ever(websocket: WebSocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


def test_a_guard_comes_alone():
    with pytest.raises(TypeError, match="not both"):
        CloseCodeMiddleware(Handler(), Guard(Settings()), settings=Settings(debug=True))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"gate": object()}, "has no method admit"),
        ({"observers": [7]}, "7 cannot be called"),
    ],
)
def test_what_cannot_be_plugged_in_is_refused_at_once(arguments, problem):
    with pytest.raises(TypeError, match=problem):
        CloseCodeMiddleware(Handler(), **arguments)


def test_routes_that_are_no_websockets_are_not_touched():
    async def page(_request):
        return PlainTextResponse("a page")

    app = Starlette(routes=[Route("/", page)], middleware=[Middleware(CloseCodeMiddleware, Guard(Settings()))])
    assert TestClient(app).get("/").text == "a page"
