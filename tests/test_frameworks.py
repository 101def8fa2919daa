"""Starlette and FastAPI with the middleware: what behaves is left alone. In process; tests/live/servers has the wire."""

import asyncio
import contextlib

import anyio
import httpx
import httpx_ws
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from httpx_ws import aconnect_ws
from httpx_ws.transport import ASGIWebSocketTransport
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Guard, Settings
from asgi_closecodes.events import SessionClosed, SessionFailed, SessionOpened, SessionRefused
from tests.support.asgi import Handler, Peer, events_of
from tests.support.fakes import StayingClient, wait_until

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


def test_close_of_the_handler(client):
    with client.websocket_connect("/number?n=5") as websocket:
        assert websocket.receive_json() == {"n": 5}
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()
    assert closed.value.code == 1000


def test_validation_error(client):
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/number?n=x"):
        pass
    assert closed.value.code == 1008


@pytest.mark.parametrize(("path", "status"), [("/deny", 451), ("/http-exception", 418)])
def test_denial(client, path, status):
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect(path):
        pass
    assert denied.value.status_code == status


def test_websocket_exception(client):
    with (
        client.websocket_connect("/websocket-exception") as websocket,
        pytest.raises(WebSocketDisconnect) as closed,
    ):
        websocket.receive_text()
    assert (closed.value.code, closed.value.reason) == (4004, "why")
    assert cleaned_up == ["a resource"]


def test_close_before_accept(client):
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
        "/below/crash/{name}",
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
    client = TestClient(build(Guard(Settings(reraise=False), observers=[seen.append])))
    with client.websocket_connect(path) as websocket, pytest.raises(WebSocketDisconnect) as closed:
        websocket.receive_text()
    assert closed.value.code == 1011
    refs = [getattr(record, "closecodes.error.id", None) for record in caplog.records]
    assert closed.value.reason.removeprefix("internal error; ref=") in refs
    if place != "twice and telling each other":
        [failed] = events_of(SessionFailed, seen)
        assert failed.error_id in closed.value.reason
        assert failed.session.route == route


def test_with_reraise_the_exception_travels_on_after_the_close():
    client = TestClient(CloseCodeMiddleware(Starlette(routes=routes()), settings=Settings(reraise=True)))
    with pytest.raises(ValueError, match="a bug"), client.websocket_connect("/crash/x") as websocket:
        try:
            websocket.receive_text()
        except WebSocketDisconnect as closed:
            assert closed.code == 1011


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["http", "lifespan"])
async def test_other_scopes_pass_through_untouched(kind):
    handed = []

    async def app(scope, receive, send):
        handed.extend((scope, receive))
        await send(message)

    async def send(message):
        handed.append(message)

    message = {"type": f"{kind}.shutdown.complete"}
    arguments = ({"type": kind}, object())
    await CloseCodeMiddleware(app, Guard(Settings()))(*arguments, send)
    assert all(one is other for one, other in zip(handed, (*arguments, message), strict=True))


@pytest.mark.anyio
async def test_server_s_scope_is_not_changed():
    peer = Peer()
    before = {**peer.scope, "extensions": dict(peer.scope["extensions"])}
    handler = Handler()
    await peer.visit(CloseCodeMiddleware(handler, Guard(Settings())))
    assert peer.scope == before
    assert handler.scopes[0]["extensions"]["closecodes"].id
    assert handler.scopes[0] is not peer.scope


def test_plain_function_in_a_thread_may_change_the_limits():
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


def test_guard_comes_alone():
    with pytest.raises(TypeError, match="not both"):
        CloseCodeMiddleware(Handler(), Guard(Settings()), settings=Settings(debug=True))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"gate": object()}, "has no method admit"),
        ({"observers": [7]}, "7 cannot be called"),
    ],
)
def test_argument_unusable_is_refused_at_once(arguments, problem):
    with pytest.raises(TypeError, match=problem):
        CloseCodeMiddleware(Handler(), **arguments)


def test_routes_that_are_no_websockets_are_not_touched():
    async def page(_request):
        return PlainTextResponse("a page")

    app = Starlette(routes=[Route("/", page)], middleware=[Middleware(CloseCodeMiddleware, Guard(Settings()))])
    assert TestClient(app).get("/").text == "a page"


# Message for message, beside the bare application


class Diary:
    """A FastAPI application that behaves, in the way that is named, and writes down what its handlers see."""

    def __init__(self, path):
        self.lines = []
        self.app = app = FastAPI()
        handlers = APIRouter()
        app.exception_handler(KeyError)(self.sorry)
        for name in vars(Diary):
            if f"/{name}/" in path:  # one of many: a route of FastAPI's takes milliseconds to build
                handlers.websocket(f"/{name}/{{item}}", dependencies=[Depends(self.resource)])(getattr(self, name))
        app.include_router(handlers, prefix="/in")
        app.mount("/below", Starlette(routes=[WebSocketRoute("/{item}", self.starlette)]))

    async def resource(self):
        self.lines.append("taken")
        try:
            yield "a resource"
        except BaseException as error:
            self.lines.append(f"rolled back for {type(error).__name__}")
            raise
        finally:
            self.lines.append("given back")

    async def sorry(self, websocket, error):
        self.lines.append("sorry")
        await websocket.close(4040, str(error))

    async def starlette(self, websocket):
        await websocket.accept(headers=[(b"x-item", websocket.path_params["item"].encode())])
        async for text in websocket.iter_text():
            await websocket.send_text(f"starlette: {text}")

    async def ws_echo(self, websocket: WebSocket, item: str):
        await websocket.accept(websocket.scope["subprotocols"][0])
        async for text in websocket.iter_text():
            await websocket.send_bytes(f"{item} {text}".encode())
        self.lines.append((websocket.application_state, websocket.client_state))

    async def ws_departure(self, websocket: WebSocket, item: str):
        await websocket.accept()
        try:
            while True:
                self.lines.append(await websocket.receive_text())
        except WebSocketDisconnect as left:
            self.lines.append((left.code, left.reason))

    async def ws_departure_from_a_task_group(self, websocket: WebSocket, item: str):
        await websocket.accept()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            async for text in websocket.iter_text():
                self.lines.append(text)
            tasks.cancel_scope.cancel()

    async def ws_close(self, websocket: WebSocket, item: str):
        await websocket.accept()
        await websocket.send_json({"item": item})
        await websocket.close(4001, "é done")

    async def ws_close_without_arguments(self, websocket: WebSocket, item: str):
        await websocket.accept()
        await websocket.close()

    async def ws_close_before_accept(self, websocket: WebSocket, item: str):
        await websocket.close(1008, "no")

    async def ws_validation(self, websocket: WebSocket, item: int):
        await websocket.accept()
        await websocket.send_json({"item": item})
        await websocket.close()

    async def ws_validation_of_a_query(self, websocket: WebSocket, item: str, page: int):
        await websocket.accept()

    async def ws_websocket_exception(self, websocket: WebSocket, item: str):
        raise WebSocketException(4004, "before accept")

    async def ws_websocket_exception_later(self, websocket: WebSocket, item: str):
        await websocket.accept()
        raise WebSocketException(4004, "after accept")

    async def ws_http_exception(self, websocket: WebSocket, item: str):
        raise HTTPException(418, "a teapot", {"x-tea": "green"})

    async def ws_denial(self, websocket: WebSocket, item: str):
        await websocket.send_denial_response(StreamingResponse(iter([b"n", b"o"]), 451))

    async def ws_handled(self, websocket: WebSocket, item: str):
        await websocket.accept()
        raise KeyError(item)


def diary_with(build, path):
    """A diary and its application, behind what ``build`` makes of it."""
    diary = Diary(path)
    return diary, build(diary.app)


def add(app):
    app.add_middleware(CloseCodeMiddleware, guard=Guard(Settings(max_sessions=5, max_sessions_per_client=5)))
    return app


def put_around(app):
    return CloseCodeMiddleware(app, settings=Settings(max_handshakes_in_progress=5))


def put_around_twice(app):
    return put_around(add(app))


WELL_BEHAVED = [f"/in/{name}/7" for name in vars(Diary) if name.startswith("ws_")] + [
    "/in/ws_validation/x",
    "/below/7",
    "/nowhere",
]


@pytest.mark.anyio
@pytest.mark.parametrize("build", [add, put_around, put_around_twice])
@pytest.mark.parametrize("path", WELL_BEHAVED)
async def test_well_behaved_application_sees_the_same_messages(build, path, caplog):
    seen = []
    for wrap in (lambda app: app, build):
        diary, app = diary_with(wrap, path)
        peer = await Peer("a", "b", path=path, raw_path=path.encode(), subprotocols=["one", "two"]).visit(app)
        seen.append((peer.sent, diary.lines))
    bare, wrapped = seen
    assert bare == wrapped
    assert bare[0]
    assert [record for record in caplog.records if record.name.startswith("asgi_closecodes.error")] == []


@pytest.mark.anyio
@pytest.mark.parametrize("build", [add, put_around, put_around_twice])
async def test_departure_that_nobody_catches_is_no_error(build, caplog):
    async def careless(websocket):
        await websocket.accept()
        while True:
            await websocket.send_text(await websocket.receive_text())

    app = build(Starlette(routes=[WebSocketRoute("/", careless)]))
    assert (await Peer("a", "b").visit(app)).heard == ["accept", "send", "send"]
    assert [record for record in caplog.records if record.name == "asgi_closecodes.error"] == []


# Failures, in the same places


@pytest.mark.anyio
@pytest.mark.parametrize("build", [add, put_around])
async def test_dependency_is_cleaned_up_before_the_close_of_a_crash(build):
    lines = []

    async def resource():
        try:
            yield 7
        finally:
            lines.append(("given back", [*peer.heard]))

    app = FastAPI()

    @app.websocket("/")
    async def crash(websocket: WebSocket, found: int = Depends(resource)):
        await websocket.accept()
        raise ValueError("a bug")

    peer = Peer()
    await peer.visit(build(app))
    assert peer.closed[0] == 1011
    assert lines == [("given back", ["accept"])]


@pytest.mark.parametrize("build", [FastAPI, Starlette])
@pytest.mark.parametrize("reraise", [False, True, "auto"])
def test_test_client_sees_the_exception_if_it_is_to_travel_on(build, reraise):
    app = build()
    app.add_middleware(CloseCodeMiddleware, settings=Settings(reraise=reraise))
    app.router.routes.extend(routes())
    closes = []

    def visit():
        with TestClient(app) as client, client.websocket_connect("/crash/x") as websocket:
            try:
                websocket.receive_text()
            except WebSocketDisconnect as closed:
                closes.append(closed.code)

    if reraise:
        with pytest.raises(ValueError, match="a bug"):
            visit()
    else:
        visit()
        assert closes == [1011]


def fastapi_crash(path="/crash/{name}", prefix=""):
    app, router = FastAPI(), APIRouter()

    @router.websocket(path)
    async def handler(websocket: WebSocket):
        await websocket.accept()
        raise ValueError("a bug")

    app.include_router(router, prefix=prefix)
    return app


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("app", "path", "route"),
    [
        (fastapi_crash, "/crash/secret", "/crash/{name}"),
        (lambda: fastapi_crash(prefix="/{tenant}"), "/acme/crash/secret", "/{tenant}/crash/{name}"),
        (lambda: fastapi_crash("/files/{name:path}"), "/files/a/b", "/files/{name}"),
        (lambda: Starlette(routes=routes()), "/crash/secret", "/crash/{name}"),
        (lambda: Starlette(routes=[Mount("/v1", fastapi_crash())]), "/v1/crash/secret", "/v1/crash/{name}"),
        (
            lambda: Starlette(routes=[Mount("/a", routes=[Mount("/b", routes=routes())])]),
            "/a/b/crash/secret",
            "/a/b/crash/{name}",
        ),
        (lambda: Starlette(routes=[Mount("/{tenant}", routes=routes())]), "/acme/crash/secret", None),
        (lambda: Starlette(routes=[Mount("/{tenant}", Handler(ValueError()))]), "/acme/secret", None),
        (lambda: Starlette(routes=[Mount("/v1", Handler(ValueError()))]), "/v1/secret", None),
    ],
)
async def test_failure_is_reported_with_the_template_of_its_route(app, path, route, caplog):
    seen = []
    guard = Guard(Settings(), observers=[seen.append])
    await Peer(path=path, raw_path=path.encode()).visit(CloseCodeMiddleware(app(), guard))
    [failed] = events_of(SessionFailed, seen)
    assert (failed.session.route, failed.session.path) == (route, path)
    [record] = [record for record in caplog.records if record.name == "asgi_closecodes.error"]
    assert vars(record).get("http.route") == route
    assert "acme" not in str(failed.session.route)


@pytest.mark.anyio
async def test_refusal_below_a_mount_has_no_route():
    seen = []
    guard = Guard(Settings(max_sessions=0), observers=[seen.append])
    app = Starlette(routes=[Mount("/v1", CloseCodeMiddleware(Starlette(routes=routes()), guard))])
    assert (await Peer(path="/v1/crash/a").visit(app)).closed[0] == 1013
    [refused] = events_of(SessionRefused, seen)
    assert (refused.session.route, refused.session.path) == (None, "/v1/crash/a")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("mount", "path", "route"),
    [("/v1", "/v1/crash/secret", "/v1/crash/{name}"), ("/{tenant}", "/acme/crash/secret", None)],
)
async def test_middleware_on_a_mount_reports_the_whole_template(mount, path, route):
    seen = []
    middleware = Middleware(CloseCodeMiddleware, Guard(Settings(), observers=[seen.append]))
    app = Starlette(routes=[Mount(mount, routes=routes(), middleware=[middleware])])
    await Peer(path=f"/proxied{path}", root_path="/proxied").visit(app)
    [failed] = events_of(SessionFailed, seen)
    assert failed.session.route == route


@pytest.mark.anyio
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), ExceptionGroup("bugs", [KeyError()])])
async def test_two_middlewares_make_one_record_and_one_close(shared, error, caplog):
    seen = []
    inner = Guard(Settings(), observers=[seen.append])
    outer = inner if shared else Guard(Settings(), observers=[seen.append])
    peer = await Peer().visit(CloseCodeMiddleware(CloseCodeMiddleware(Handler(error), inner), outer))
    assert peer.heard == ["accept", "close"]
    assert len(events_of(SessionFailed, seen)) == 1
    [record] = [record for record in caplog.records if record.name == "asgi_closecodes.error"]
    assert vars(record)["closecodes.error.id"] in peer.closed[1]
    assert not inner.sessions
    assert not outer.sessions


@pytest.mark.anyio
async def test_two_middlewares_with_one_guard_take_one_permit():
    seen = []
    guard = Guard(Settings(max_sessions=1), observers=[seen.append])
    peer = await Peer().visit(CloseCodeMiddleware(CloseCodeMiddleware(Handler(ValueError("a bug")), guard), guard))
    assert peer.closed[0] == 1011
    assert guard.snapshot()["closes"] == {1011: 1}
    assert len(events_of(SessionOpened, seen)) == len(events_of(SessionClosed, seen)) == 1


# Where no lifespan comes


@pytest.mark.anyio
@pytest.mark.parametrize(
    "build",
    [
        lambda *middleware: Starlette(routes=[WebSocketRoute("/", echo_for_ever, middleware=middleware)]),
        lambda *middleware: Starlette(
            routes=[Mount("/", routes=[WebSocketRoute("/", echo_for_ever)], middleware=middleware)]
        ),
    ],
    ids=["on a route", "on a mount"],
)
async def test_limits_without_a_lifespan_hold_and_are_followed(build):
    guard = Guard(Settings(max_sessions=2, shed_rate=100))
    app = build(Middleware(CloseCodeMiddleware, guard))
    gone, peers = anyio.Event(), []
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            peers.append(StayingClient(gone))
            tasks.start_soon(peers[-1].visit, app)
            await wait_until(lambda: peers[-1].sent)
        await wait_until(lambda: len(peers[2].sent) == 2)
        assert peers[2].closed[0] == 1013
        guard.update(max_sessions=0)
        await wait_until(lambda: not guard.sessions)
        gone.set()
    assert [peer.closed[0] for peer in peers] == [1013] * 3


@pytest.mark.anyio
@pytest.mark.parametrize("extensions", [{"extensions": {"websocket.http.response": {}}}, {"extensions": {}}, {}])
@pytest.mark.parametrize("error", [None, ValueError("a bug")])
async def test_scope_and_its_extensions_are_the_server_s(extensions, error):
    scope = {"type": "websocket", "asgi": {"version": "3.0"}, "path": "/", "headers": [], "state": {}, **extensions}
    inside = scope.get("extensions")
    before = repr(scope)
    peer, handler = Peer(), Handler(error)
    guard = Guard(Settings())
    await CloseCodeMiddleware(CloseCodeMiddleware(handler, guard), guard)(scope, peer.receive, peer.send)
    assert repr(scope) == before
    assert scope.get("extensions") is inside
    [handed] = handler.scopes
    assert handed is not scope
    assert set(handed["extensions"]) == {"closecodes", *(inside or {})}
    assert {key: value for key, value in handed.items() if key != "extensions"} == {
        key: value for key, value in scope.items() if key != "extensions"
    }
    assert handed["state"] is scope["state"]


# Other clients than Starlette's


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reraise", "asgi", "travels_on"),
    [
        ("auto", {"asgi": {"version": "3.0"}}, False),
        ("auto", {}, True),
        (False, {}, False),
        (True, {"asgi": {"version": "3.0"}}, True),
    ],
)
async def test_exception_travels_on_where_no_server_is(reraise, asgi, travels_on):
    """Every server says in the scope which ASGI it speaks; a test client does not. A setting decides before that."""
    peer = Peer()
    scope = {key: value for key, value in peer.scope.items() if key != "asgi"} | asgi
    app = CloseCodeMiddleware(Handler(ValueError("a bug")), settings=Settings(reraise=reraise))
    with pytest.raises(ValueError, match="a bug") if travels_on else contextlib.nullcontext():
        await app(scope, peer.receive, peer.send)
    assert peer.closed[0] == 1011


@pytest.mark.anyio
async def test_close_that_is_meant_stays_one_without_a_server():
    peer = Peer()
    del peer.scope["asgi"]
    await peer.visit(CloseCodeMiddleware(Handler(CloseWith(4003, "banned")), Guard()))
    assert peer.closed == (4003, "banned")


def test_channels_communicator_raises_the_exception():
    from channels.testing import WebsocketCommunicator  # with all of Django, in each process that collects tests

    async def visit():
        communicator = WebsocketCommunicator(CloseCodeMiddleware(Handler(ValueError("a bug")), Guard()), "/")
        await communicator.connect()
        await communicator.wait()

    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(visit())


@pytest.mark.anyio
async def test_httpx_ws_sees_what_a_browser_would():
    app = fastapi_crash()
    app.websocket("/echo")(echo_for_ever)
    guard = Guard(Settings(max_sessions=1))
    app.add_middleware(CloseCodeMiddleware, guard=guard)
    async with httpx.AsyncClient(transport=ASGIWebSocketTransport(app)) as client:
        async with aconnect_ws("ws://testserver/echo", client) as websocket:
            await websocket.send_text("x")
            assert await websocket.receive_text() == "x"
            async with aconnect_ws("ws://testserver/echo", client) as refused:
                with pytest.raises(httpx_ws.WebSocketDisconnect) as closed:
                    await refused.receive_text()
            assert closed.value.code == 1013
            assert "cause=full" in closed.value.reason
        await wait_until(lambda: not guard.sessions)
        async with aconnect_ws("ws://testserver/crash/x", client) as websocket:
            with pytest.raises(httpx_ws.WebSocketDisconnect) as closed:
                await websocket.receive_text()
        assert closed.value.code == 1011
        assert closed.value.reason.startswith("internal error; ref=")
