"""Frameworks that say by themselves that there is no such path: no crash, no ERROR for whoever scans for paths."""

import contextlib
import functools

import pytest

from tests.support.peers import connect
from tests.support.servers import SETUPS, serve

BODY = "why " * 25_000
NOT_FOUND = """<!doctype html>
<html lang=en>
<title>404 Not Found</title>
<h1>Not Found</h1>
<p>The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again.</p>
"""


CHANNELS = [(setup, "channels") for setup in SETUPS if setup != "hypercorn-trio"]
QUART = [(setup, "quart") for setup, _ in CHANNELS if setup != "daphne"]  # whose scope has no scheme
SANIC = [(setup, "sanic") for setup, _ in QUART]  # it needs a lifespan
QUIET = [*CHANNELS, *SANIC]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a server when it is first asked for."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(setup):
            folder = tmp_path_factory.mktemp("routers")
            return stack.enter_context(serve(setup, "tests.live.servers.routers:app", folder))

        yield start


@pytest.mark.parametrize(("setup", "framework"), [*QUIET, *QUART])
def test_path_that_is_there_is_served(start, setup, framework):
    assert connect(start(setup), f"/{framework}/echo", say="x", patience=0.5).received == ("x",)


@pytest.mark.parametrize(("setup", "framework"), QUIET)
@pytest.mark.parametrize("path", ["nowhere", "below/nowhere", "echo/more"])
def test_path_without_a_route_is_not_found(start, setup, framework, path):
    path = f"/{framework}/{path}"
    assert str(connect(start(setup), path)) == ("HTTP 403" if setup == "daphne" else "HTTP 404")
    [record] = start(setup).wait_for_records(1, url__path=path)
    assert (record["event.name"], record["level"]) == ("closecodes.session.not_found", "info")


@pytest.mark.parametrize(("setup", "framework"), CHANNELS)
def test_handler_that_says_the_same_has_failed(start, setup, framework):
    path = f"/{framework}/crash"
    assert connect(start(setup), path).code == 1011
    [record] = start(setup).wait_for_records(1, url__path=path)
    assert record["event.name"] == "closecodes.session.exception"


@pytest.mark.parametrize(("setup", "framework"), QUART)
def test_denial_in_several_parts_arrives_whole(start, setup, framework):
    for path, answer in ((f"/{framework}/deny", (451, BODY)), (f"/{framework}/nowhere", (404, NOT_FOUND))):
        seen = connect(start(setup), path)
        assert (seen.status, seen.body) == answer
        assert start(setup).records(url__path=path) == []
