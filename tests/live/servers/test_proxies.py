"""The client's own address behind nginx and haproxy, by the recipes of asgi_closecodes/README.md."""

import pytest

from tests.support.peers import Raw, connect, wait_until
from tests.support.proxies import PROXIES, proxy
from tests.support.servers import serve

RECIPES = {
    "uvicorn-sansio": ("plain", ["--forwarded-allow-ips", "127.0.0.1"]),
    "hypercorn-asyncio": ("hypercorn", []),
    "granian": ("granian", []),
    "daphne": ("plain", ["--proxy-headers"]),
}


@pytest.fixture(scope="module", params=RECIPES)
def running(request, tmp_path_factory):
    app, options = RECIPES[request.param]
    directory = tmp_path_factory.mktemp("proxied")
    with serve(request.param, f"tests.live.servers.proxied:{app}", directory, *options) as running:
        running.is_daphne = request.param == "daphne"
        yield running


@pytest.mark.parametrize("name", PROXIES)
def test_each_client_behind_a_proxy_has_its_own_limit(running, name, tmp_path):
    """Whatever it writes into the header itself."""
    with proxy(name, running, tmp_path) as front:
        forged = b"X-Forwarded-For: 203.0.113.9\r\n"
        with Raw(front.client("127.0.0.2")) as first, Raw(front.client("127.0.0.3"), extra=forged) as other:
            assert first.answer() == other.answer() == 101
            for peer in (first, other):
                peer.send(1, b"x")
                assert peer.frame() == (1, b"x")  # both are open
            for extra in (b"", forged):
                with Raw(front.client("127.0.0.2"), extra=extra) as second:
                    assert second.answer() == 101
                    close = second.close_frame()
                    assert close.code == (4013 if running.is_daphne else 1013)
                    assert running.is_daphne or "cause=client" in close.reason
        records = running.wait_for_records(2, event__name="closecodes.session.refused", client__address="127.0.0.2")
        assert {record["closecodes.gate.cause"] for record in records} == {"client"}
        assert not running.records(client__address="203.0.113.9")
        assert not running.records(client__address="127.0.0.1", closecodes__gate__cause="client")
        assert wait_until(lambda: connect(front, "/echo", say="x", patience=0.3).open)


@pytest.mark.parametrize("name", PROXIES)
def test_crash_and_a_refusal_pass_through_a_proxy(running, name, tmp_path):
    with proxy(name, running, tmp_path) as front:
        seen = connect(front, "/raise-after-accept")
        assert seen.code == 1011
        assert running.is_daphne or seen.ref
        seen = connect(front, "/by-http")
        if running.is_daphne:  # it cannot answer a handshake by HTTP 503
            assert seen.code == 4013
        else:
            assert seen.status == 503
            assert seen.header("retry-after")
