"""Time limits of open sessions on live servers: each code and cause, and which server tells what."""

import contextlib
import socket
import time

import pytest

from tests.support.peers import Raw, held, snapshot, tell, wait_until

from .at_once import at_once, on_each

FINDS_SOCKET = {"uvicorn-sansio", "uvicorn-wsproto", "hypercorn-asyncio", "hypercorn-trio"}
"""Set-ups whose ``send`` leads to the socket."""

TELLS_OF_LOSS = FINDS_SOCKET - {"hypercorn-trio"}
"""Set-ups that tell of every departure, whatever the handler waits for: trio's socket stays open after a reset."""


@pytest.fixture
def servers(servers):
    yield servers
    on_each(servers, clear)


def clear(server):
    """Cancel whoever is left if its peer has left, or end it."""
    tell(server, "shed", idle_timeout="None", cancel_after_disconnect="True", send_timeout="None")
    tell(server, "shed", shed="1")
    assert wait_until(lambda: held(server, "shed") == 0, within=30)
    tell(server, "shed", cancel_after_disconnect="False")


def sheds(server, cause):
    return snapshot(server, "shed")["sheds"].get(cause, 0)


class Narrow:
    """A server to which connections have a receive buffer of a few KiB."""

    def __init__(self, server):
        self._address = server.address

    def connect(self):
        plain = socket.socket()
        plain.settimeout(10)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect(self._address)
        return plain


@at_once
def test_idle_session_is_closed_with_3008(server, setup):
    """Whether its peer answers the close or not."""
    tell(server, "shed", idle_timeout="1")
    before = sheds(server, "idle")
    with Raw(server, "/shed/echo") as polite, Raw(server, "/shed/echo") as mute:
        assert polite.answer() == mute.answer() == 101
        for _ in range(8):  # longer than the limit, but not idle
            for peer in (polite, mute):
                peer.send(1, b"x")
                assert peer.frame() == (1, b"x")
            time.sleep(0.25)
        start = time.monotonic()
        seen = polite.close_frame()
        assert time.monotonic() - start > 0.7
        with contextlib.suppress(ConnectionError):
            polite.send(8, seen.code.to_bytes(2))
        said = "3008" if setup == "daphne" else "3008 idle timeout; cause=idle"
        assert str(seen) == str(mute.close_frame()) == said
        assert wait_until(lambda: held(server, "shed") == 0)
    assert sheds(server, "idle") == before + 2
    records = server.wait_for_records(before + 2, event__name="closecodes.session.shed", closecodes__gate__cause="idle")
    assert {(record["websocket.close.code"], record["level"]) for record in records} == {(3008, "info")}


@pytest.mark.parametrize("handler", ["flood", "flood-in-new-tasks"])
@at_once
def test_peer_that_does_not_read_is_shed_as_slow(server, setup, handler):
    """But on daphne, where no send ever waits: memory grows instead."""
    tell(server, "shed", send_timeout="1")
    before = sheds(server, "slow")
    with Raw(server, f"/shed/{handler}") as peer:
        assert peer.answer() == 101
        if setup == "daphne":
            time.sleep(3)
            assert sheds(server, "slow") == before
            return
        assert wait_until(lambda: snapshot(server, "shed")["leaving"] or sheds(server, "slow") > before)
        if handler == "flood":
            assert str(peer.close_frame()).startswith("1013 try again later; retry_after=")
        assert wait_until(lambda: sheds(server, "slow") > before)


@at_once
def test_peer_that_reads_ordinary_messages_is_never_slow(server):
    tell(server, "shed", send_timeout="0.5")
    before = sheds(server, "slow")
    with Raw(server, "/shed/send-only") as peer:
        assert peer.answer() == 101
        for _ in range(8):  # longer than the limit
            peer.socket.recv(410)
            time.sleep(0.2)
    assert sheds(server, "slow") == before


@at_once(setups=FINDS_SOCKET)
def test_peer_that_reads_4_kb_a_second_of_a_flood_is_not_slow(server, setup):
    """Each send of the server's waits for longer than the limit then; elsewhere nothing tells that such a peer reads."""
    tell(server, "shed", send_timeout="3")
    before = sheds(server, "slow")
    with Raw(Narrow(server), "/shed/flood") as peer:
        assert peer.answer() == 101
        for _ in range(75):
            peer.socket.recv(410)
            time.sleep(0.1)
        assert sheds(server, "slow") == before
        if setup in TELLS_OF_LOSS:  # the sends of a trio worker are shorter
            assert snapshot(server, "shed")["stalled"] == 1
        assert wait_until(lambda: snapshot(server, "shed")["leaving"], within=20), "it has stopped to read"


@pytest.mark.parametrize("way", ["close", "vanish"])
@pytest.mark.parametrize("handler", ["go-on-after-the-disconnect", "sleep", "send-and-swallow"])
@at_once
def test_handler_without_its_peer_is_cancelled(server, setup, handler, way):
    told = handler.startswith("go-on") or setup in TELLS_OF_LOSS or (setup == "hypercorn-trio" and way == "close")
    tell(server, "shed", cancel_after_disconnect="True")
    with Raw(server, f"/shed/{handler}") as peer:
        assert peer.answer() == 101
        time.sleep(0.1)
        if way == "vanish":
            peer.vanish()
        else:
            peer.send(8, (1000).to_bytes(2))
            time.sleep(0.1)
    if told:  # elsewhere the server may tell of it late, or never
        assert wait_until(lambda: held(server, "shed") == 0)
    assert not server.records(event__name="closecodes.session.exception")
    assert "Traceback" not in server.log()


@at_once(setups=[*TELLS_OF_LOSS])
def test_flood_to_a_peer_that_vanishes_leaves_the_loop_free(server):
    """The send of uvicorn waits for nothing once the socket is gone, and so no turn tells of that."""
    tell(server, "shed", cancel_after_disconnect="True")
    with Raw(server, "/shed/flood-without-a-pause") as peer:
        assert peer.answer() == 101
        taken = 0
        while taken < 1_000_000:
            taken += len(peer.socket.recv(1 << 16))
        peer.vanish()
    assert wait_until(lambda: held(server, "shed") == 0)
    assert not server.records(event__name="closecodes.session.exception")


@pytest.mark.parametrize(
    "behind", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x81\x81\0\0\0\0x"], ids=["request", "data"]
)
@at_once(setups=["hypercorn-asyncio"])
def test_idle_timeout_frees_what_hypercorn_never_tells_of(server, behind):
    def is_open():
        return held(server, "shed") == 1

    for _ in range(10):  # it depends on what its tasks have read until then
        with Raw(server, "/shed/echo", behind=behind) as peer:
            wait_until(is_open, within=1)
            peer.vanish()
        time.sleep(0.7)
        if is_open():
            break
    assert is_open()
    tell(server, "shed", idle_timeout="1")
    assert wait_until(lambda: not is_open())
