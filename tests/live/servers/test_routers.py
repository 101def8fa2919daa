"""Frameworks that say by themselves that there is no such path: no crash, no ERROR for whoever scans for paths."""

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
QUART = [(setup, "quart_wrapped") for setup, _ in CHANNELS if setup != "daphne"]  # whose scope has no scheme
SANIC = [(setup, "sanic_wrapped") for setup, _ in QUART]  # it needs a lifespan
QUIET = [*CHANNELS, *SANIC]


@pytest.fixture(scope="module")
def routers(request, tmp_path_factory):
    setup, framework = request.param
    with serve(setup, f"tests.live.servers.routers:{framework}", tmp_path_factory.mktemp(framework)) as running:
        yield running


@pytest.mark.parametrize("routers", [*QUIET, *QUART], indirect=True)
def test_path_that_is_there_is_served(routers):
    assert connect(routers, "/echo", say="x", patience=0.5).received == ("x",)


@pytest.mark.parametrize(("routers", "setup"), [(pair, pair[0]) for pair in QUIET], indirect=["routers"])
@pytest.mark.parametrize("path", ["/nowhere", "/below/nowhere", "/echo/more"])
def test_path_without_a_route_is_not_found(routers, setup, path):
    assert str(connect(routers, path)) == ("HTTP 403" if setup == "daphne" else "HTTP 404")
    [record] = routers.wait_for_records(1, url__path=path)
    assert (record["event.name"], record["level"]) == ("closecodes.session.not_found", "info")


@pytest.mark.parametrize("routers", CHANNELS, indirect=True)
def test_handler_that_says_the_same_has_failed(routers):
    assert connect(routers, "/crash").code == 1011
    [record] = routers.wait_for_records(1, url__path="/crash")
    assert record["event.name"] == "closecodes.session.exception"


@pytest.mark.parametrize("routers", QUART, indirect=True)
def test_denial_in_several_parts_arrives_whole(routers):
    for path, answer in (("/deny", (451, BODY)), ("/nowhere", (404, NOT_FOUND))):
        seen = connect(routers, path)
        assert (seen.status, seen.body) == answer
        assert routers.records(url__path=path) == []
