"""The recipes of README.md do what they promise."""

import json

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close

from tests.integrations.peers import PATIENCE_S, opened
from tests.support.peers import REF, connect
from tests.support.programs import module
from tests.support.servers import serve

MODULES = ("ariadne", "blacksheep", "falcon", "fastapi_limiter", "sanic", "slowapi", "strawberry")
CLOSES = {"crash": None, "busy": "1013 try again later; retry_after=2.0; cause=db", "asked": "4001 as asked"}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    for name in MODULES:
        module(name)
    with serve("uvicorn-sansio", "tests.integrations.app_recipes:app", tmp_path_factory.mktemp("recipes")) as running:
        yield running


def check(running, seen, how, code=1011):
    if CLOSES[how] is not None:
        assert str(seen) == CLOSES[how]
        return
    assert seen.code == code
    [ref] = REF.fullmatch(seen.reason).groups()
    [record] = running.wait_for_records(1, closecodes__error__id=ref)
    assert record["exception.message"] == "secret"


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
