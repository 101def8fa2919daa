"""What clients see without the middleware, on live servers: the facts that this library exists for."""

import pytest

from tests.support.peers import Raw, connect, connect_with_httpx_ws
from tests.support.servers import SETUPS, serve

from .at_once import at_once, serve_all

FACTS = {
    #                         uvicorn     uvicorn     hypercorn   hypercorn
    #                         sansio      wsproto     asyncio     trio        granian     daphne
    "raise-before-accept":   ["HTTP 500", "HTTP 500", "HTTP 500", "HTTP 500", "HTTP 403", "HTTP 500"],
    "raise-after-accept":    ["1006",     "1006",     "1011",     "1011",     "1005",     "1011"],
    "raise-a-group":         ["1006",     "1006",     "1011",     "1011",     "1005",     "1011"],
    "be-cancelled":          ["1006",     "1006",     "1011",     "1011",     "1005",     "open"],
    "return-after-accept":   ["1006",     "1006",     "1011",     "1011",     "1005",     "open"],
    "close-before-accept":   ["HTTP 403", "HTTP 403", "HTTP 403", "HTTP 403", "HTTP 403", "HTTP 403"],
    "deny":                  ["HTTP 503", "HTTP 503", "HTTP 503", "HTTP 503", "HTTP 503", "no answer"],
    "close-1013":            ["1013 full", "1013 full", "1013 full", "1013 full", "1013 full", "1011"],
    "close-1011":            ["1011 broken", "1011 broken", "1011 broken", "1011 broken", "1011 broken", "1011"],
    "close-4013":            ["4013 full", "4013 full", "4013 full", "4013 full", "4013 full", "4013"],
    "deny-after-accept":     ["1006",     "1006",     "1011",     "1011",     "1005",     "open"],
    "close-with-a-long-reason": ["1006", "4000 " + "x" * 123, "4000 " + "x" * 123, "4000 " + "x" * 123, "1006", "4000"],
    "close-1006":            ["1006",     "1000",     "1000",     "1000",     "1006",     "1011"],
    "close-twice":           ["4000 first", "4000 first", "4000 first", "4000 first", "4000 first", "4000"],
}  # fmt: skip


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with serve_all("tests.live.servers.apps:bare", tmp_path_factory.mktemp("bare")) as servers:
        yield servers


@pytest.mark.parametrize("path", FACTS)
@at_once
def test_client_of_the_bare_server_sees_what_is_documented(server, setup, path):
    seen = connect(server, f"/{path}", patience=2)
    assert str(seen) == FACTS[path][SETUPS.index(setup)]


@at_once
def test_crash_leaves_nothing_that_the_client_could_report(server):
    seen = connect(server, "/raise-after-accept")
    assert seen.reason == ""


@at_once
def test_crash_seen_with_httpx_ws(server, setup):
    expected = {"uvicorn": 1006, "hypercorn": 1011, "granian": 1005, "daphne": 1011}[setup.partition("-")[0]]
    assert connect_with_httpx_ws(server, "/raise-after-accept").code == expected


@pytest.mark.parametrize("uvicorn", ["uvicorn-sansio", "uvicorn-wsproto"])
def test_uvicorn_s_limit_concurrency_limits_no_websockets(uvicorn, tmp_path, holding):
    with serve(uvicorn, "tests.live.servers.apps:bare", tmp_path, "--limit-concurrency", "2", forked=True) as running:
        peers = [holding.enter_context(Raw(running, "/echo")) for _ in range(6)]
        assert [peer.answer() for peer in peers] == [101] * 6
