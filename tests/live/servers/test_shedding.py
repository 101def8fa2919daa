"""Sessions that are ended from outside of their handlers, on live servers."""

import contextlib
import itertools
import time

import pytest

from tests.support.peers import HINT, Raw, connect, held, is_empty, snapshot, tell, wait_until

from .at_once import at_once, on_each

ENDING = (
    "echo",
    "receive-in-a-child-task",
    "receive-in-two-tasks",
    "receive-with-a-time-limit",
    "receive-in-a-generator",
    "clean-up-after-the-disconnect",
    "send-only",
)
"""Handlers that end by themselves when their session is shed."""

STUBBORN = (
    "sleep",
    "ignore-the-disconnect",
    "receive-for-ever",
    "receive-in-new-tasks",
    "send-and-swallow",
)
"""Handlers that have to be cancelled."""

GRACE_S = 4
"""Seconds that they have; longer than the server waits for the answer to a close."""


@pytest.fixture
def servers(servers):
    yield servers
    on_each(servers, clear)


def clear(server):
    tell(server, "shed", max_sessions="None", max_sessions_per_client="None", shed_grace="1")
    assert wait_until(is_empty(server, "shed"))


@at_once
def test_shed_session_gets_its_code_whatever_its_handler_does(server, daphne, holding, news):
    """At once; its handler may end by itself, and is cancelled after its grace. That is no error.

    Of each there is one whose peer answers the close, and one whose peer does not.
    """
    kinds = [*itertools.product((*ENDING, *STUBBORN), ("polite", "mute"))]
    stubborn = 2 * len(STUBBORN)
    before = snapshot(server, "shed")["sheds"].get("test", 0)
    tell(server, "shed", shed_grace=GRACE_S)
    peers = {kind: holding.enter_context(Raw(server, f"/shed/{kind[0]}")) for kind in kinds}
    assert {kind: peer.answer() for kind, peer in peers.items()} == dict.fromkeys(kinds, 101)
    assert wait_until(lambda: held(server, "shed") == len(kinds))
    time.sleep(0.1)  # let the handlers reach what they wait for
    tell(server, "shed", shed="1")
    seen = {kind: peer.close_frame() for kind, peer in peers.items()}
    assert held(server, "shed") >= stubborn, "not only when the grace is over"
    said = "4013" if daphne else "1013 try again later; retry_after=2.0; cause=test"
    assert {kind: str(one) for kind, one in seen.items()} == dict.fromkeys(kinds, said)
    for kind, peer in peers.items():
        if "polite" in kind:
            with contextlib.suppress(ConnectionError):  # a server may hang up before it is answered
                peer.send(8, seen[kind].code.to_bytes(2))
    # A session counts as long as its connection: uvicorn waits for the answer, until it is aborted.
    assert wait_until(lambda: held(server, "shed") == stubborn), "the others do not wait for their grace"
    assert wait_until(is_empty(server, "shed"), within=30)
    said = news()
    assert "Traceback" not in said, said[said.find("Traceback") :][:4000]
    assert '"error"' not in said
    assert snapshot(server, "shed")["sheds"]["test"] - before == len(kinds)


@at_once
def test_handler_shed_sees_a_disconnect_and_sends_raise(server):
    earlier = len(server.records(saw=1013))
    with Raw(server, "/shed/clean-up-after-the-disconnect") as peer:
        assert peer.answer() == 101
        time.sleep(0.05)
        tell(server, "shed", shed="1")
        peer.close_frame()
    *_, record = server.wait_for_records(earlier + 1, saw=1013)
    assert record["sending"] == "SessionEnded"
    assert record["why"] == "try again later; retry_after=2.0; cause=test"


@at_once
def test_handshake_that_is_not_answered_is_ended_too(server, daphne):
    with Raw(server, "/shed/answer-late") as peer:
        assert wait_until(lambda: held(server, "shed") == 1)
        time.sleep(0.05)
        tell(server, "shed", shed="1")
        assert peer.answer() == 101
        assert peer.close_frame().code == (4013 if daphne else 1013)


@at_once
def test_sessions_over_a_lowered_limit_leave_newest_first(server, daphne, holding):
    peers = []
    for _ in range(5):
        peers.append(holding.enter_context(Raw(server, "/shed/echo")))
        assert peers[-1].answer() == 101
    tell(server, "shed", max_sessions="2", shed_rate="20")
    for peer in peers[2:]:
        seen = peer.close_frame()
        assert seen.code == (4013 if daphne else 1013)
        assert daphne or HINT.fullmatch(seen.reason)
    assert wait_until(lambda: held(server, "shed") == 2)
    for peer in peers[:2]:
        peer.send(1, b"still here")
        assert peer.frame() == (1, b"still here")
    assert connect(server, "/shed/echo").code == (4013 if daphne else 1013)


@at_once
def test_client_s_dead_sessions_do_not_lock_it_out(server, daphne, holding):
    tell(server, "shed", max_sessions_per_client="5", when_client_full="replace_oldest")
    zombies = []
    for _ in range(5):
        zombies.append(holding.enter_context(Raw(server, "/shed/echo")))
        assert zombies[-1].answer() == 101  # one after the other: granian's threads do not keep an order
    alive = holding.enter_context(Raw(server, "/shed/echo"))
    assert alive.answer() == 101
    alive.send(1, b"hello")
    assert alive.frame() == (1, b"hello")
    seen = zombies[0].close_frame()
    assert seen.code == (4013 if daphne else 1013)
    assert daphne or seen.reason.endswith("cause=replaced")
    assert wait_until(lambda: held(server, "shed") == 5)


@at_once
def test_drain_tells_everybody_and_lets_nobody_in(server, daphne, holding):
    peers = [holding.enter_context(Raw(server, "/shed/echo")) for _ in range(6)]
    assert [peer.answer() for peer in peers] == [101] * 6
    start = time.monotonic()
    tell(server, "shed", drain="1")
    assert time.monotonic() - start > 0.5, "not all at once"
    for peer in peers:
        seen = peer.close_frame()
        assert seen.code == (4012 if daphne else 1012)
        assert daphne or seen.reason == "service restart; retry_after=1.0; cause=drain"
