"""The client's own address behind nginx and haproxy, by the recipes of asgi_closecodes/README.md."""

import contextlib

import pytest

from tests.support.peers import Raw, connect, wait_until
from tests.support.proxies import PROXIES, proxy
from tests.support.servers import serve

from .at_once import at_once

RECIPES = {
    "uvicorn-sansio": ("plain", ["--forwarded-allow-ips", "127.0.0.1"]),
    "hypercorn-asyncio": ("hypercorn", []),
    "granian": ("granian", []),
    "daphne": ("plain", ["--proxy-headers"]),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxied")
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(serve(setup, f"tests.live.servers.proxied:{app}", folder, *options, forked=True))
            for setup, (app, options) in RECIPES.items()
        ]


def folder_of(server, tmp_path):
    (folder := tmp_path / server.setup).mkdir()
    return folder


@pytest.mark.parametrize("name", PROXIES)
@at_once
def test_each_client_behind_a_proxy_has_its_own_limit(server, daphne, name, tmp_path):
    """Whatever it writes into the header itself."""
    with proxy(name, server, folder_of(server, tmp_path)) as front:
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
                    assert close.code == (4013 if daphne else 1013)
                    assert daphne or "cause=client" in close.reason
        records = server.wait_for_records(2, event__name="closecodes.session.refused", client__address="127.0.0.2")
        assert {record["closecodes.gate.cause"] for record in records} == {"client"}
        assert not server.records(client__address="203.0.113.9")
        assert not server.records(client__address="127.0.0.1", closecodes__gate__cause="client")
        assert wait_until(lambda: connect(front, "/echo", say="x", patience=0.3).open)


@pytest.mark.parametrize("name", PROXIES)
@at_once
def test_crash_and_a_refusal_pass_through_a_proxy(server, daphne, name, tmp_path):
    with proxy(name, server, folder_of(server, tmp_path)) as front:
        seen = connect(front, "/raise-after-accept")
        assert seen.code == 1011
        assert daphne or seen.ref
        seen = connect(front, "/by-http")
        if daphne:  # it cannot answer a handshake by HTTP 503
            assert seen.code == 4013
        else:
            assert seen.status == 503
            assert seen.header("retry-after")
