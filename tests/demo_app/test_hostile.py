"""Whatever somebody sends to the demo's endpoints, the answer is no 500; in process, where one raises."""

import json
import logging

import anyio
import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from demo_app import controls
from demo_app.app import create_app

DEEP = b"[" * 100_000
HUGE = b"9" * 4000

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["\ud800", 10**400, -(10**4000), 1e308, float("nan"), float("-inf")]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["max_sessions", "name"]), inner),
    max_leaves=4,
)
named = st.fixed_dictionaries({}, optional={"max_sessions": values, "name": values})
bodies = st.binary(max_size=20) | (values | named).map(lambda value: json.dumps(value).encode())

HEADERS = ["origin", "cookie", "content-type", "range", "if-range", "if-none-match", "if-modified-since", "accept"]
contents = st.binary(max_size=12) | st.sampled_from(
    [b"http://[", b"null", b"http://localhost", b"bytes=9-1", b"bytes=0-0,-1", b"application/json", b"who=\xff.x"]
)
headers = st.dictionaries(st.sampled_from(HEADERS), contents, max_size=3)

PATHS = ["/", "/healthz", "/state", *(f"/control/{action}" for action in ("limit", "stall", "drain", "resume"))]
paths = st.sampled_from([*PATHS, "/static/demo.js", "/sign-in", "/feed", "/bare/echo", "/echo"]) | st.binary(
    max_size=8
).map(lambda part: "/static/" + "".join(f"%{byte:02x}" for byte in part))


@pytest.fixture(scope="module")
def apps():
    ours = logging.getLogger("asgi_closecodes")
    kept = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in (logging.root, ours)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controls, "STALL_S", 0)
        patch.setattr(controls, "BEFORE_STALL_S", 0)
        patch.setenv("CLOSECODES_DRAIN_WINDOW", "0")
        from demo_app.chat import app as chat  # it configures logging

        yield create_app(), chat
    for logger, handlers, level, propagate in kept:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.parametrize("which", ["demo", "chat"])
@settings(deadline=None, max_examples=100)
@given(st.sampled_from(["GET", "HEAD", "POST", "PUT", "NONSENSE"]), paths, headers, bodies)
@example("POST", "/control/limit", {"origin": b"http://["}, b"")
@example("POST", "/control/limit", {}, DEEP)
@example("POST", "/control/limit", {}, b'{"max_sessions":' * 50_000)
@example("POST", "/control/limit", {}, b'{"max_sessions": ' + HUGE + b"}")
@example("POST", "/control/limit", {}, b'{"max_sessions": ' + HUGE * 2 + b"}")
@example("POST", "/control/limit", {}, b'{"max_sessions": "\\ud800"}')
@example("POST", "/control/limit", {}, b'{"max_sessions": NaN, "max_sessions": 3}')
@example("POST", "/control/limit", {}, b"\xff\xfe{\x00")
@example("POST", "/sign-in", {"content-type": b"application/json"}, DEEP)
@example("POST", "/sign-in", {"content-type": b"application/json"}, b'{"name": NaN}')
@example("POST", "/sign-in", {"content-type": b"application/json"}, b'{"name": "\\ud800"}')
@example("POST", "/sign-in", {"content-type": b"application/json"}, b'{"name": 1e999}')
@example("GET", "/static/%00", {}, b"")
@example("GET", "/static/demo.js", {"range": b"bytes=0-0,\xff"}, b"")
def test_demo_hostile_request_is_no_500(apps, which, method, path, headers, body):
    """The server's own: a stack trace of the demo is one that a click was to show."""

    async def ask():
        transport = httpx2.ASGITransport(apps[which == "chat"])  # raises what a server would answer with 500
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.request(method, path, headers=headers, content=body)
            after = await client.get("/state")
        assert answer.status_code < 500
        assert after.status_code == (404 if which == "chat" else 200)

    anyio.run(ask)
