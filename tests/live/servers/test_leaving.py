"""What is known of how a client left, on each server; and one that leaves before its handshake is answered."""

import signal

import pytest

from tests.support.peers import Raw, wait_until
from tests.support.servers import serve

from .at_once import at_once, serve_all

LEGACY = "uvicorn {app} {uvicorn_bind} --ws websockets --log-level info --no-access-log"
WAYS = {"1000": 1000, "1001": 1001, "4000": 4000, "no-code": None, "lost": "vanish"}
NO_CODE = {"no-code": 1005, "lost": 1005}
"""What uvicorn and granian say of both."""

SAID = {
    "uvicorn-sansio": NO_CODE,
    "uvicorn-wsproto": NO_CODE,
    "granian": NO_CODE,
    "daphne": {"no-code": 1005, "lost": 1006},
    "hypercorn-asyncio": dict.fromkeys(WAYS),
    "hypercorn-trio": dict.fromkeys(WAYS),
}
"""The codes that records have; None is a record without one."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with serve_all("tests.live.servers.leaving:app", tmp_path_factory.mktemp("leaving")) as servers:
        yield servers


@pytest.mark.parametrize("way", WAYS)
@at_once
def test_close_of_the_client_is_told_as_known(server, setup, way):
    with Raw(server, f"/{way}") as peer:
        assert peer.answer() == 101
        if WAYS[way] == "vanish":
            peer.vanish()
        else:
            peer.send(8, b"" if WAYS[way] is None else WAYS[way].to_bytes(2))
        [record] = server.wait_for_records(1, event__name="closecodes.session.closed", url__path=f"/{way}")
    assert record.get("websocket.close.code") == SAID[setup].get(way, WAYS[way])
    assert record["closecodes.session.closed_by"] == "client"


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    env = {"PYTHONWARNINGS": "ignore"}  # it is deprecated
    with serve(LEGACY, "tests.live.servers.leaving:app", tmp_path_factory.mktemp("legacy"), env=env) as running:
        yield running


@pytest.mark.parametrize("handler", ["accept", "send", "close", "return", "refuse"])
def test_client_that_leaves_before_the_accept_has_left(legacy, handler):
    with Raw(legacy, f"/late/{handler}") as peer:
        assert wait_until(lambda: legacy.records(path=f"/late/{handler}"))
        peer.vanish()
        legacy.process.send_signal(signal.SIGUSR1)
        [record] = legacy.wait_for_records(1, event__name="closecodes.session.closed", url__path=f"/late/{handler}")
    assert (record["websocket.close.code"], record["closecodes.session.closed_by"]) == (1006, "client")
    assert legacy.records(level="error") == legacy.records(level="warning") == []
    assert "Traceback" not in legacy.log()
