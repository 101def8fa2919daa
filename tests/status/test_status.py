"""Who may see what of a guard over HTTP, and what they see."""

import json
import logging
import os
import threading

import anyio
import httpx2
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, StatusApp
from asgi_closecodes.events import CallbackFailed
from tests.support.asgi import Handler, Peer
from tests.support.fakes import ConnectedClients, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.jumping_clock]

NOTHING = "Forbidden"

EVERYTHING = [
    (method, path)
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "NONSENSE")
    for path in ("/", "/drain", "/view", "/status.js", "/status.css", "/nothing", "/drain/", "//", "/%2e%2e/x", "/%00")
]


def allowed(request):
    return request.headers.get("authorization") == "Bearer secret"


@pytest.fixture
def guard():
    return Guard(Settings(max_sessions=2))


def client_of(app, *, base="http://host/", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=base, headers=headers)


def served(guard, authorize=allowed):
    """A client that is authorized."""
    return client_of(StatusApp(guard, authorize=authorize), authorization="Bearer secret")


# How it is made


def test_status_app_cannot_be_made_by_accident(guard):
    with pytest.raises(
        TypeError, match=r"authorize is missing; give a function .* authorize=None allows every request"
    ):
        StatusApp(guard)


@pytest.mark.parametrize("nonsense", ["secret", True, False, 0])
def test_authorization_that_cannot_be_called_is_refused(guard, nonsense):
    with pytest.raises(TypeError, match=f"authorize must be a function, not {nonsense!r}; give a function"):
        StatusApp(guard, authorize=nonsense)


async def test_authorization_none_admits_everybody_and_says_so(guard, caplog):
    app = StatusApp(guard, authorize=None)
    [record] = [record for record in caplog.records if record.name == "asgi_closecodes.config" and record.levelno > 20]
    assert record.levelno == logging.WARNING
    assert "every client can see the status" in record.getMessage()
    async with client_of(app) as client:
        assert (await client.get("/")).status_code == 200


# Who may


@pytest.mark.parametrize("how", ["app", "starlette", "fastapi"])
async def test_unauthorized_learn_nothing(guard, how):
    status = StatusApp(guard, authorize=allowed)
    app = status
    if how != "app":
        app = Starlette() if how == "starlette" else FastAPI()
        app.mount("/a/status", status)
    answers = set()
    async with client_of(app, base="http://host/" if how == "app" else "http://host/a/status") as client:
        for method, path in EVERYTHING:
            response = await client.request(method, path)
            assert (response.status_code, response.text) == (403, "" if method == "HEAD" else NOTHING)
            answers.add(tuple(response.headers.raw))
    assert len(answers) == 1
    assert not guard.draining


@pytest.mark.parametrize("kind", ["plain", "async", "object", "async object", "returns an awaitable"])
@pytest.mark.parametrize("answer", [True, False])
async def test_any_function_can_authorize(guard, kind, answer):
    seen = []

    def plain(request):
        seen.append(request)
        return answer

    async def asynchronous(request):
        return plain(request)

    class Plain:
        def __call__(self, request):
            return plain(request)

    class Asynchronous:
        async def __call__(self, request):
            return plain(request)

    functions = {"plain": plain, "async": asynchronous, "object": Plain(), "async object": Asynchronous()}
    authorize = functions.get(kind) or (lambda request: asynchronous(request))
    async with served(guard, authorize) as client:
        assert (await client.get("/?a=b")).status_code == (200 if answer else 403)
    [request] = seen
    assert isinstance(request, HTTPConnection)
    assert (request.headers["authorization"], request.query_params["a"]) == ("Bearer secret", "b")


@pytest.mark.parametrize("returned", [None, 1, "yes", (False, "no"), object()])
async def test_only_true_is_a_yes(returned):
    events = []
    guard = Guard(observers=[events.append])
    async with served(guard, lambda request: returned) as client:
        response = await client.get("/")
    assert (response.status_code, response.text) == (403, NOTHING)
    [failed] = [event for event in events if isinstance(event, CallbackFailed)]
    assert failed.callback == "authorize"
    assert str(failed.exception) == f"authorize returned a {type(returned).__name__}; return True or False"


async def test_authorization_that_fails_lets_nobody_pass(guard, caplog):
    def authorize(request):
        raise LookupError("a secret of the database")

    async with served(guard, authorize) as client:
        response = await client.get("/")
    assert (response.status_code, response.text) == (403, NOTHING)
    [record] = [record for record in caplog.records if record.name == "asgi_closecodes.error"]
    assert record.exc_info[0] is LookupError
    assert "secret" not in record.getMessage()


async def test_slow_authorization_does_not_stop_the_event_loop(guard):
    loop_runs = threading.Event()

    def authorize(request):
        return loop_runs.wait(10)

    async with served(guard, authorize) as client, anyio.create_task_group() as tasks:

        async def show_that_it_runs():
            loop_runs.set()

        tasks.start_soon(show_that_it_runs)
        assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_authorization_is_cancelled(guard):
    async def authorize(request):
        await anyio.sleep_forever()

    async with served(guard, authorize) as client:
        with anyio.move_on_after(0.05) as scope:
            await client.get("/")
    assert scope.cancelled_caught


# What they see


async def test_snapshot(guard):
    app = CloseCodeMiddleware(Handler(ValueError("a secret")), guard)
    await Peer().visit(app)
    async with served(guard) as client:
        response = await client.get("/")
        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"] == "no-store"
        seen = response.json()
        assert seen == {
            **json.loads(json.dumps(guard.snapshot())),
            "limits": guard.settings.limits(),
            "pid": os.getpid(),
        }
        assert (seen["open"], seen["draining"], seen["limits"]["max_sessions"]) == (0, False, 2)
        assert seen["closes"] == {"1011": 1}
        assert [(group["type"], group["count"]) for group in seen["error_groups"]] == [("ValueError", 1)]
        assert "a secret" not in response.text


async def test_full_process_still_answers(guard):
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        app = CloseCodeMiddleware(StatusApp(guard, authorize=None), guard)
        async with client_of(app) as client:
            seen = (await client.get("/")).json()
        assert (seen["open"], seen["limits"]["max_sessions"]) == (2, 2)


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("HEAD", "/", 200, None),
        ("HEAD", "/view", 200, None),
        ("POST", "/", 405, {"GET", "HEAD"}),
        ("GET", "/drain", 405, {"POST"}),
        ("PUT", "/drain", 405, {"POST"}),
        ("GET", "/nothing", 404, None),
        ("GET", "/view/", 404, None),
    ],
)
@pytest.mark.parametrize("mounted", [False, True])
async def test_methods_and_paths(guard, method, path, status, allow, mounted):
    app = StatusApp(guard, authorize=None)
    if mounted:
        app = Starlette(routes=[Mount("/status", app)])
    async with client_of(app, base="http://host/status" if mounted else "http://host/") as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert response.headers["cache-control"] == "no-store"
    if allow:
        assert set(response.headers["allow"].split(", ")) == allow
    assert not guard.draining


@pytest.mark.parametrize(("path", "kind"), [("/view", "html"), ("/status.css", "css"), ("/status.js", "javascript")])
async def test_page_is_bound_by_a_strict_policy(guard, path, kind):
    async with served(guard) as client:
        response = await client.get(path)
    assert response.headers["content-type"] == f"text/{kind}; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert "http:" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


# Draining


async def test_drain_answers_when_it_is_done(guard):
    async with ConnectedClients(guard) as stay, served(guard) as client:
        await stay.come(2)
        response = await client.post("/drain?window=0")
        assert response.status_code == 200
        assert response.json()["draining"] is True
        await wait_until(lambda: not guard.sessions)
    assert guard.snapshot()["sheds"] == {"drain": 2}


async def test_drain_goes_on_when_its_caller_leaves(guard):
    async with ConnectedClients(guard) as stay, served(guard) as client:
        await stay.come(2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.post, "/drain?window=1")
            await wait_until(lambda: guard.draining)
            tasks.cancel_scope.cancel()
        assert guard.draining
        await wait_until(lambda: not guard.sessions)


async def test_drain_with_patience_waits_for_busy_sessions(guard):
    async with ConnectedClients(guard) as stay, served(guard) as client, anyio.create_task_group() as tasks:
        await stay.come(1)
        [session] = guard.sessions
        with session.busy():
            tasks.start_soon(client.post, "/drain?window=0&patience=60")
            await wait_until(lambda: guard.snapshot()["drain"])
            state = guard.snapshot()["drain"]
            assert (state["patience"], state["waits_for_busy"], state["remaining"]) == (60, True, 1)
        await wait_until(lambda: not guard.sessions)


@pytest.mark.parametrize("window", ["-1", "nan", "inf", "soon", ""])
async def test_window_that_is_none_drains_nothing(guard, window):
    async with served(guard) as client:
        response = await client.post("/drain", params={"window": window})
    assert (response.status_code, response.text) == (
        400,
        f"window must be a number of seconds, 0 or more, not {window!r}",
    )
    assert not guard.draining


@pytest.mark.parametrize(
    ("headers", "drains"),
    [
        ({}, True),  # no browser
        ({"sec_fetch_site": "same-origin", "origin": "http://host"}, True),
        ({"sec_fetch_site": "same-origin", "origin": "https://behind.a.proxy"}, True),
        ({"origin": "http://host"}, True),  # a browser over plain http
        ({"origin": "https://host"}, True),  # the proxy speaks TLS
        ({"sec_fetch_site": "cross-site", "origin": "http://host"}, False),
        ({"sec_fetch_site": "same-site", "origin": "http://other.host"}, False),
        ({"sec_fetch_site": "none"}, False),
        ({"sec_fetch_site": ""}, False),
        ({"origin": "http://evil"}, False),
        ({"origin": "http://host.evil"}, False),
        ({"origin": "http://host:8000"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "null", "host": ""}, False),
    ],
)
async def test_another_site_s_page_cannot_drain(guard, headers, drains):
    async with client_of(StatusApp(guard, authorize=None), **headers) as client:
        response = await client.post("/drain", data={"a": "form"})
    assert response.status_code == (200 if drains else 403)
    assert drains or response.text == NOTHING
    assert guard.draining is drains


def from_here(request):
    return request.client.host == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "evil@localhost", ""])
@pytest.mark.parametrize(("method", "path"), [("POST", "/drain"), ("GET", "/"), ("GET", "/view"), ("GET", "/nothing")])
@pytest.mark.parametrize("authorize", [None, from_here])
async def test_status_rebound_name_is_forbidden(guard, authorize, method, path, host):
    """A page whose name was made to point here sends the visitor's address, and an Origin that is its Host."""
    app = StatusApp(guard, authorize=authorize, allowed_hosts=["localhost", "127.0.0.1"])
    async with client_of(app, host=host, origin=f"http://{host}", sec_fetch_site="same-origin") as client:
        response = await client.request(method, path)
    assert (response.status_code, response.text) == (403, NOTHING)
    assert not guard.draining


@pytest.mark.parametrize("host", ["Ops.Example", "ops.example:8000", "[::1]", "[::1]:8000", "[::2]:80", "127.0.0.1:1"])
async def test_status_allowed_host_passes(guard, host):
    app = StatusApp(guard, authorize=from_here, allowed_hosts=("ops.EXAMPLE", "::1", "[::2]", "127.0.0.1"))
    async with client_of(app, host=host, origin=f"http://{host}") as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.post("/drain")).status_code == 200


@pytest.mark.parametrize(
    ("hosts", "error", "said"),
    [
        ("localhost", TypeError, r"must be a list, as \['ops"),
        (["http://localhost"], ValueError, "omit the scheme"),
        (["localhost:8000"], ValueError, "not 'localhost:8000'; omit the scheme, the port"),
        (["*"], ValueError, r"not '\*'"),
        ([""], ValueError, "not ''"),
    ],
)
async def test_status_what_is_no_host_is_named(guard, hosts, error, said):
    with pytest.raises(error, match=said):
        StatusApp(guard, authorize=from_here, allowed_hosts=hosts)


# As an application of its own


async def test_websocket_finds_nothing(guard):
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    await StatusApp(guard, authorize=None)(Peer(path="/").scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_status_app_has_a_lifespan(guard):
    sent = []
    says = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive():
        return next(says)

    async def send(message):
        sent.append(message["type"])

    await StatusApp(guard, authorize=None)({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
