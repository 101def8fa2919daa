"""The recipes of README.md do what they promise."""

import json

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close

from tests.integrations.peers import PATIENCE_S, opened
from tests.support.peers import REF, connect
from tests.support.programs import module
from tests.support.servers import serve

MODULES = (
    *("ariadne", "blacksheep", "falcon", "fastapi_limiter", "fastapi_websocket_pubsub", "mcp", "sanic", "slowapi"),
    "strawberry",
)
CLOSES = {"crash": None, "busy": "1013 try again later; retry_after=2.0; cause=db", "asked": "4001 as asked"}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    for name in MODULES:
        module(name)
    folder = tmp_path_factory.mktemp("recipes")
    with serve("uvicorn-sansio", "tests.integrations.app_recipes:app", folder, forked=True) as running:
        yield running


def check(running, seen, how, code=1011):
    if CLOSES[how] is not None:
        assert str(seen) == CLOSES[how]
        return
    assert seen.code == code
    [ref] = REF.fullmatch(seen.reason).groups()
    [record] = running.wait_for_records(1, closecodes__error__id=ref)
    assert "ValueError: secret" in record["exception.stacktrace"]


@pytest.mark.parametrize("how", CLOSES)
@pytest.mark.parametrize("name", ["falcon", "sanic"])
def test_recipe_exception_is_its_close(running, name, how):
    check(running, connect(running, f"/{name}/{how}"), how)


def test_recipe_blacksheep_crash_keeps_its_text(running):
    check(running, connect(running, "/blacksheep/crash"), "crash")


def test_recipe_falcon_error_of_its_own_stays(running):
    assert str(connect(running, "/falcon/own")).startswith("3403")


@pytest.mark.parametrize("how", CLOSES)
@pytest.mark.parametrize("name", ["strawberry", "ariadne"])
def test_recipe_graphql_crash_is_retried(running, name, how):
    hello = json.dumps({"type": "connection_init", "payload": {"how": how}})
    seen = connect(running, f"/{name}/graphql", say=hello, subprotocols=["graphql-transport-ws"])
    check(running, seen, how, code=4011)


@pytest.mark.parametrize("how", CLOSES)
@pytest.mark.parametrize("name", ["rpc", "pubsub"])
def test_recipe_rpc_exception_is_its_close(running, name, how):
    check(running, connect(running, f"/{name}/rpc", say=call(how)), how)


@pytest.mark.parametrize("name", ["rpc", "pubsub"])
def test_recipe_rpc_bad_message_is_ignored(running, name):
    with opened(running, f"/{name}/rpc") as websocket:
        websocket.send('{"request": 7}')
        websocket.send(call("echo"))
        assert json.loads(websocket.recv(timeout=PATIENCE_S))["response"]["result"] == "x"


def call(method):
    return json.dumps({"request": {"method": method, "arguments": {}, "call_id": "1"}})


@pytest.mark.parametrize("how", CLOSES)
def test_recipe_mcp_exception_is_its_close(running, how):
    check(running, connect(running, f"/mcp_{how}/mcp", subprotocols=["mcp"]), how)


def test_recipe_mcp_tool_answers_with_its_error(running):
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    asked = [
        {"id": 1, "method": "initialize", "params": params},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": "crash", "arguments": {}}},
        {"id": 3, "method": "ping"},
    ]
    with opened(running, "/mcp/mcp", subprotocols=["mcp"]) as websocket:
        for message in asked:
            websocket.send(json.dumps({"jsonrpc": "2.0", **message}))
        answers = {answer["id"]: answer["result"] for answer in (json.loads(websocket.recv()) for _ in range(3))}
    assert (answers[2]["isError"], answers[3]) == (True, {})


@pytest.mark.parametrize("name", ["fastapi_limiter", "slowapi"])
def test_recipe_limiter_is_try_again_later(running, name):
    received = []
    with opened(running, f"/{name}/limited") as websocket, pytest.raises(ConnectionClosed) as closed:
        for _ in range(3):
            websocket.send("x")
        while True:
            received.append(websocket.recv(timeout=PATIENCE_S))
    assert received == ["x", "x"]
    assert closed.value.rcvd == Close(1013, "try again later; retry_after=60.0; cause=rate")
