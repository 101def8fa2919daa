"""Sessions that are ended from outside of their handlers, on live servers."""

import contextlib
import time

import pytest

from tests.support.peers import HINT, Raw, connect, eventually, held, is_empty, snapshot, tell

HANDLERS = {
    # path: seconds after which it is gone at the latest; it has one second of grace
    "echo": 0.9,
    "receive-in-a-child-task": 0.9,
    "receive-in-two-tasks": 0.9,
    "receive-with-a-time-limit": 0.9,
    "receive-in-a-generator": 0.9,
    "clean-up-after-the-disconnect": 0.9,
    "send-only": 0.9,
    "sleep": 5,
    "ignore-the-disconnect": 5,
    "receive-for-ever": 5,
    "receive-in-new-tasks": 5,
    "send-and-swallow": 5,
}


@pytest.fixture
def daphne(setup):
    return setup == "daphne"


@pytest.fixture(autouse=True)
def nobody_is_there(server):
    assert eventually(is_empty(server, "shed"))
    yield
    tell(server, "shed", max_sessions="None", max_sessions_per_client="None")
    assert eventually(is_empty(server, "shed"))


@pytest.mark.parametrize("mute", [False, True], ids=["polite", "mute"])
@pytest.mark.parametrize("handler", HANDLERS)
def test_shed_session_gets_its_code_whatever_its_handler_does(server, setup, daphne, handler, mute):
    with Raw(server, f"/shed/{handler}") as peer:
        assert peer.answer() == 101
        assert eventually(lambda: held(server, "shed") == 1)
        time.sleep(0.05)  # let the handler reach what it waits for
        start = time.monotonic()
        tell(server, "shed", shed="1")
        seen = peer.close_frame()
        took = time.monotonic() - start
        if daphne:
            assert str(seen) == "4013"
        else:
            assert str(seen) == "1013 try again later; retry_after=2.0; cause=test"
        assert took < 0.9  # not only when the grace was over
        if not mute:
            with contextlib.suppress(ConnectionError):  # a server may hang up before it is answered
                peer.send(8, seen.code.to_bytes(2))
        assert eventually(is_empty(server, "shed"))
        # A session counts as long as its connection: uvicorn waits for the answer, until it is aborted.
        is_held = mute and setup.startswith("uvicorn")
        assert time.monotonic() - start < HANDLERS[handler] + 0.5 + 2.0 * is_held


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


def test_session_that_is_shed_is_no_error(server, news):
    before = snapshot(server, "shed")["sheds"].get("test", 0)
    for handler in HANDLERS:
        with Raw(server, f"/shed/{handler}") as peer:
            assert peer.answer() == 101
            time.sleep(0.02)
            tell(server, "shed", shed="1")
            peer.close_frame()
            assert eventually(is_empty(server, "shed"))
    said = news()
    assert "Traceback" not in said, said[said.find("Traceback") :][:4000]
    assert '"error"' not in said
    assert snapshot(server, "shed")["sheds"]["test"] - before == len(HANDLERS)


def test_handshake_that_is_not_answered_is_ended_too(server, daphne):
    with Raw(server, "/shed/answer-late") as peer:
        assert eventually(lambda: held(server, "shed") == 1)
        time.sleep(0.05)
        tell(server, "shed", shed="1")
        assert peer.answer() == 101
        assert peer.close_frame().code == (4013 if daphne else 1013)


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
    assert eventually(lambda: held(server, "shed") == 2)
    for peer in peers[:2]:
        peer.send(1, b"still here")
        assert peer.frame() == (1, b"still here")
    assert connect(server, "/shed/echo").code == (4013 if daphne else 1013)


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
    assert eventually(lambda: held(server, "shed") == 5)


def test_drain_tells_everybody_and_lets_nobody_in(server, daphne, holding):
    peers = [holding.enter_context(Raw(server, "/shed/echo")) for _ in range(6)]
    assert [peer.answer() for peer in peers] == [101] * 6
    start = time.monotonic()
    tell(server, "shed", drain="1")
    took = time.monotonic() - start
    for peer in peers:
        seen = peer.close_frame()
        assert seen.code == (4012 if daphne else 1012)
        assert daphne or seen.reason == "service restart; retry_after=1.0; cause=drain"
    assert 0.5 < took < 3
