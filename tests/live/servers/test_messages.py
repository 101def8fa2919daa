"""Limits of messages on live servers: who is delayed, who is closed, and which server pushes back."""

import contextlib
import threading
import time

import psutil
import pytest

from tests.support.peers import Raw, held, snapshot, tell, wait_until

from .at_once import at_once, on_each

FRAME = b"\x81\xfe\x04\x00" + bytes(4) + b"x" * 1024
"""A text of 1 KiB, masked with zeros."""

MAX_ACCEPTED_BYTES = 24 << 20
"""Bytes that the systems' and the server's buffers take, at most, from a peer whose messages nobody receives."""


@pytest.fixture
def servers(servers):
    yield servers
    on_each(servers, clear)


def clear(server):
    # A handler that ignores its peer's departure is cancelled; hypercorn does not tell of every departure.
    tell(server, "shed", cancel_after_disconnect="True", abandon_after="2")
    tell(server, "shed", messages_per_second="None", message_burst="None", message_patience="5", shadow="")
    tell(server, "shed", shed="1")
    assert wait_until(lambda: held(server, "shed") == 0, within=60)
    tell(server, "shed", cancel_after_disconnect="False", abandon_after="60")


def flood(peer, until):
    """Send as fast as the server takes it; return the bytes that it took."""
    taken = 0
    sender = peer.socket  # the peer may read by another one meanwhile, which is more patient
    sender.settimeout(0.5)
    try:
        while not until():
            with contextlib.suppress(TimeoutError):
                taken += sender.send(FRAME * 64)
    except OSError:
        pass
    return taken


def flooding(peer):
    gone = threading.Event()
    thread = threading.Thread(target=flood, args=[peer, gone.is_set], daemon=True)
    thread.start()
    return gone, thread


def refusals(server):
    return snapshot(server, "shed")["refusals"].get("messages", 0)


@at_once
def test_flooder_is_closed_with_1008(server, setup):
    tell(server, "shed", messages_per_second="20", message_burst="5", message_patience="1")
    before, start = refusals(server), time.monotonic()
    with Raw(server, "/shed/receive-for-ever") as peer:
        assert peer.answer() == 101
        gone, thread = flooding(peer)
        reader = peer.socket.dup()
        reader.settimeout(20)
        peer.socket, sender = reader, peer.socket
        seen = peer.close_frame()
        gone.set()
        thread.join()
        sender.close()
    assert time.monotonic() - start >= 1
    assert str(seen) == ("4008" if setup == "daphne" else "1008 too many messages; cause=messages")
    assert wait_until(lambda: refusals(server) == before + 1)
    [*_, record] = server.wait_for_records(1, closecodes__gate__name="messages")
    assert (record["closecodes.gate.cause"], record["level"], record["event.name"]) == (
        "messages",
        "info",
        "closecodes.session.refused",
    )
    assert wait_until(lambda: held(server, "shed") == 0, within=30)


@at_once
def test_peer_below_the_limit_is_let_alone(server):
    tell(server, "shed", messages_per_second="20", message_burst="5", message_patience="0.5")
    with Raw(server, "/shed/echo") as peer:
        assert peer.answer() == 101
        for _ in range(40):
            peer.send(1, b"x")
            assert peer.frame() == (1, b"x")
            time.sleep(0.06)
        assert held(server, "shed") == 1


@at_once
def test_limit_of_an_open_session_delays_what_it_says(server):
    with Raw(server, "/shed/echo") as peer:
        assert peer.answer() == 101
        tell(server, "shed", messages_per_second="2", message_burst="1", message_patience="60")
        start = time.monotonic()
        for _ in range(4):
            peer.send(1, b"x")
        # One receive had been called before.
        assert [peer.frame() for _ in range(4)] == [(1, b"x")] * 4
        assert time.monotonic() - start >= 0.9


@at_once
def test_server_pushes_back_or_memory_is_bounded_until_the_close(server, setup):
    """daphne reads on, whatever is received: there the patience bounds what it holds."""
    patience = "1" if setup == "daphne" else "600"
    tell(server, "shed", messages_per_second="2", message_burst="1", message_patience=patience)
    process = psutil.Process(server.process.pid)
    everybody = [process, *process.children(recursive=True)]

    def resident():
        return sum(one.memory_info().rss for one in everybody)

    before = resident()
    with Raw(server, "/shed/receive-for-ever") as peer:
        assert peer.answer() == 101
        start = time.monotonic()
        if setup == "daphne":
            flood(peer, lambda: refusals_soon(start))
            assert wait_until(lambda: refusals(server) >= 1, within=20)
        else:
            assert flood(peer, lambda: time.monotonic() - start > 3) <= MAX_ACCEPTED_BYTES
        assert resident() - before <= 256 << 20


def refusals_soon(start):
    return time.monotonic() - start > 4


@at_once
def test_shed_interrupts_the_delay(server, setup):
    tell(server, "shed", messages_per_second="0.05", message_burst="1", message_patience="600")
    with Raw(server, "/shed/echo") as peer:
        assert peer.answer() == 101
        peer.send(1, b"x")
        assert peer.frame() == (1, b"x")
        peer.send(1, b"x")
        time.sleep(0.3)
        tell(server, "shed", shed="1")
        assert peer.close_frame().code == (4013 if setup == "daphne" else 1013)


@at_once
def test_shadow_only_tells(server):
    tell(
        server, "shed", messages_per_second="5", message_burst="1", message_patience="0.5", shadow="messages_per_second"
    )
    before = len(server.records(closecodes__refusal__mode="shadow"))
    with Raw(server, "/shed/echo") as peer:
        assert peer.answer() == 101
        for _ in range(30):
            peer.send(1, b"x")
            assert peer.frame() == (1, b"x")
    assert len(server.wait_for_records(before + 1, closecodes__refusal__mode="shadow")) == before + 1
