"""Frameworks that say by themselves that there is no such path: no crash, no ERROR for whoever scans for paths."""

import itertools

import pytest

from tests.support.peers import connect
from tests.support.servers import SETUPS

from .at_once import at_once, serve_all

BODY = "why " * 25_000
NOT_FOUND = """<!doctype html>
<html lang=en>
<title>404 Not Found</title>
<h1>Not Found</h1>
<p>The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again.</p>
"""


SETUPS_OF = {
    "channels": [setup for setup in SETUPS if setup != "hypercorn-trio"],
    "quart": [setup for setup in SETUPS if setup not in {"hypercorn-trio", "daphne"}],  # whose scope has no scheme
    "sanic": [setup for setup in SETUPS if setup not in {"hypercorn-trio", "daphne"}],  # it needs a lifespan
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with serve_all("tests.live.servers.routers:app", tmp_path_factory.mktemp("routers"), SETUPS_OF["channels"]) as all_:
        yield all_


@at_once
def test_path_that_is_there_is_served(server, setup):
    for framework, setups in SETUPS_OF.items():
        if setup in setups:
            assert connect(server, f"/{framework}/echo", say="x", patience=0.5).received == ("x",), framework


@at_once
def test_path_without_a_route_is_not_found(server, setup):
    for framework, below in itertools.product(("channels", "sanic"), ("nowhere", "below/nowhere", "echo/more")):
        if setup in SETUPS_OF[framework]:
            path = f"/{framework}/{below}"
            assert str(connect(server, path)) == ("HTTP 403" if setup == "daphne" else "HTTP 404"), path
            [record] = server.wait_for_records(1, url__path=path)
            assert (record["event.name"], record["level"]) == ("closecodes.session.not_found", "info"), path


@at_once
def test_handler_that_says_the_same_has_failed(server):
    assert connect(server, "/channels/crash").code == 1011
    [record] = server.wait_for_records(1, url__path="/channels/crash")
    assert record["event.name"] == "closecodes.session.exception"


@at_once(setups=SETUPS_OF["quart"])
def test_denial_in_several_parts_arrives_whole(server):
    for path, answer in (("/quart/deny", (451, BODY)), ("/quart/nowhere", (404, NOT_FOUND))):
        seen = connect(server, path)
        assert (seen.status, seen.body) == answer
        assert server.records(url__path=path) == []
