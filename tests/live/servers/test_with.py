"""The contract: what clients see with the middleware, and what is left behind, on live servers."""

import re
import time

import pytest

from tests.support.peers import HINT, Raw, connect, connect_with_httpx_ws, held, is_empty, snapshot, tell, wait_until

from .apps import SECRET
from .at_once import at_once, on_each, serve_all

CLOSES = {
    # path: what a client sees, and what it sees of daphne where that differs
    "be-cancelled": ["1012", "4012"],
    "return-after-accept": ["1000"],
    "return-before-accept": ["HTTP 403"],
    "close-before-accept": ["HTTP 403"],
    "deny": ["HTTP 503", "HTTP 403"],
    "deny-half-and-raise": ["HTTP 403"],
    "deny-after-accept": ["1008 410 Gone", "4008"],
    "raise-http-exception": ["1008 403 Forbidden", "4008"],
    "close-1013": ["1013 full", "4013"],
    "close-1011": ["1011 broken", "4011"],
    "close-4013": ["4013 full", "4013"],
    "close-with-a-long-reason": ["4000 " + "x" * 123, "4000"],
    "close-with-a-long-reason-in-utf8": ["4000 " + "é" * 61, "4000"],
    "close-with-a-list": ["4000 [{'loc': 'query'}]", "4000"],
    "close-1006": ["1011", "4011"],
    "close-twice": ["4000 first", "4000"],
    "raise-close-with": ["4001 as asked", "4001"],
    "raise-close-with-before-accept": ["4001 as asked", "4001"],
    "raise-try-again-later": ["1013 try again later; retry_after=7.2; cause=database", "4013"],
    "raise-a-group-that-agrees": ["4001 as asked", "4001"],
    "raise-what-is-mapped": ["4002 mapped", "4002"],
    "raise-several-mapped": ["4002 mapped", "4002"],
    "raise-in-a-framework": ["1013 try again later; retry_after=7.2; cause=database", "4013"],
    "raise-a-failure-in-a-framework": ["4500 of the framework", "4500"],
    "fail-with-what-is-mapped": ["4002 mapped", "4002"],
}
FAILURES = {"raise-before-accept": "connecting", "raise-after-accept": "open", "raise-a-group": "open"}


@pytest.mark.parametrize("path", CLOSES)
@at_once
def test_client_sees_the_documented_end(server, daphne, path):
    seen = connect(server, f"/{path}")
    assert str(seen) == CLOSES[path][-1 if daphne else 0]
    assert SECRET not in repr(seen)


# 1011


@pytest.mark.parametrize("path", FAILURES)
@at_once
def test_failure_is_1011_and_one_record_with_the_client_s_ref(server, daphne, path):
    earlier = len(server.records(url__path=f"/{path}"))
    seen = connect(server, f"/{path}")
    assert seen.code == 1011
    assert SECRET not in repr(seen)
    *_, record = server.wait_for_records(earlier + 1, url__path=f"/{path}")
    assert len(server.records(url__path=f"/{path}")) == earlier + 1
    if daphne:
        assert seen.reason == ""
    else:
        assert record["closecodes.error.id"] == seen.ref
        assert record["websocket.close.reason"] == seen.reason
    assert record["event.name"] == "closecodes.session.exception"
    assert record["level"] == "error"
    assert record["logger"] == "asgi_closecodes.error"
    assert record["websocket.close.code"] == 1011
    assert record["websocket.close.sent"] is not daphne
    assert record["closecodes.error.phase"] == FAILURES[path]
    assert record["client.address"] == "127.0.0.1"
    raiser = "raise_before_accept" if "before" in path else "raise_after_accept"
    assert f"in {raiser}\n" in record["exception.stacktrace"]
    assert f"ValueError: {SECRET}" in record["exception.stacktrace"]
    assert SECRET not in record["message"]
    assert record["exception.type"] == ("ExceptionGroup" if "group" in path else "ValueError")


@pytest.mark.parametrize("path", ["fail-in-the-handler", "fail-in-a-task", "fail-in-a-thread"])
@at_once
def test_fail_is_1011_and_one_record_of_its_ref(server, daphne, path):
    earlier = len(server.records(url__path=f"/{path}"))
    seen = connect(server, f"/{path}")
    assert seen.code == (4011 if daphne else 1011)
    assert SECRET not in repr(seen)
    *_, record = server.wait_for_records(earlier + 1, url__path=f"/{path}")
    assert len(server.records(url__path=f"/{path}")) == earlier + 1
    assert record["event.name"] == "closecodes.session.exception"
    assert daphne or record["closecodes.error.id"] == seen.ref
    assert record["websocket.close.code"] == seen.code
    assert record["websocket.close.sent"]
    assert f"ValueError: {SECRET}" in record["exception.stacktrace"]


@at_once
def test_failure_on_a_message(server, daphne):
    seen = connect(server, "/raise-on-message", say="token=hunter2")
    assert seen.code == 1011
    *_, record = server.wait_for_records(1, url__path="/raise-on-message")
    assert record["closecodes.session.messages.received"] == 1
    assert "hunter2" not in server.log()
    assert daphne or record["closecodes.error.id"] == seen.ref


@at_once
def test_server_does_not_log_the_failure_again(server, daphne, news):
    connect(server, "/raise-after-accept")
    assert wait_until(lambda: "closecodes.session.exception" in news())
    time.sleep(0.2)
    assert ("Traceback" in re.sub(r"^\{.*$", "", news(), flags=re.MULTILINE)) is daphne


@at_once
def test_reraise_lets_the_server_see_the_failure(server, daphne, news):
    seen = connect(server, "/reraise/raise-after-accept")
    assert seen.code == 1011
    assert daphne or seen.ref
    assert wait_until(lambda: "Traceback" in re.sub(r"^\{.*$", "", news(), flags=re.MULTILINE))
    assert news().count("closecodes.session.exception") == 1


@at_once
def test_debug_tells_the_client(server, daphne):
    seen = connect(server, "/debug/raise-after-accept")
    if daphne:
        assert str(seen) == "1011"
    else:
        assert re.fullmatch(rf"ValueError: {SECRET}; ref=\w{{12}}", seen.reason)


@at_once
def test_codes_may_be_chosen(server, daphne):
    seen = connect(server, "/private/raise-after-accept")
    assert seen.code == 4011
    assert daphne or seen.ref
    assert connect(server, "/private/raise-try-again-later").code == 4013


@at_once
def test_by_httpx_ws(server, daphne):
    assert connect_with_httpx_ws(server, "/raise-after-accept").code == 1011
    assert connect_with_httpx_ws(server, "/return-after-accept").code == 1000
    assert str(connect_with_httpx_ws(server, "/close-before-accept")) == "HTTP 403"
    assert str(connect_with_httpx_ws(server, "/http/echo")) == ("4013" if daphne else "HTTP 503")


@at_once
def test_half_a_denial_is_ended_and_reported(server, daphne):
    earlier = len(server.records(url__path="/deny-half-and-raise"))
    assert str(connect(server, "/deny-half-and-raise")) == "HTTP 403"
    assert len(server.wait_for_records(earlier + 1, url__path="/deny-half-and-raise")) == earlier + 1


@at_once
def test_code_that_may_not_be_sent_leaves_a_warning(server):
    connect(server, "/close-1006")
    [*_, record] = server.wait_for_records(1, url__path="/close-1006", level="warning")
    assert record["event.name"] == "closecodes.session.close_repaired"


# What is no error


@pytest.mark.parametrize("leave", ["by a close frame", "without a word"])
@at_once
def test_peer_that_leaves_is_no_error(server, news, leave):
    for path in ("let-the-disconnect-escape", "send-after-the-peer-left", "send-until-the-disconnect"):
        with Raw(server, f"/{path}") as peer:
            assert peer.answer() == 101
            if leave == "without a word":
                peer.vanish()
            else:
                peer.send(8, b"\x03\xe9")
    assert wait_until(is_empty(server, ""))
    time.sleep(0.1)
    assert "Traceback" not in news()
    assert "ERROR" not in news()
    assert '"error"' not in news()


@at_once
def test_handshake_answered_by_http_logs_no_server_error(server, news):
    for path in ("/http/echo", "/deny", "/deny-half-and-raise", "/one/return-before-accept"):
        assert connect(server, path).status or server.records()
    time.sleep(0.2)
    assert "without" not in re.sub(r"^\{.*$", "", news(), flags=re.MULTILINE)
    assert "ERROR" not in news()


# 1013


@at_once
def test_full_server_says_when_to_return_and_has_room_again(server, daphne):
    """A full server says when to come back, and has room again when somebody leaves."""
    assert wait_until(is_empty(server, "one"))
    with Raw(server, "/one/echo") as peer:
        assert peer.answer() == 101
        hints = []
        for _ in range(3):
            seen = connect(server, "/one/echo")
            assert seen.code == (4013 if daphne else 1013)
            hints += [] if daphne else [float(HINT.fullmatch(seen.reason)[1])]
        assert daphne or (0.9 <= hints[0] <= 3 and hints == sorted(hints))
        [*_, record] = server.wait_for_records(1, event__name="closecodes.session.refused", url__path="/echo")
        assert record["closecodes.gate.cause"] in {"full", "client"}
        assert held(server, "one") == 1
        peer.send(8, b"\x03\xe8")
        peer.close_frame()
    assert wait_until(is_empty(server, "one"))
    assert connect(server, "/one/echo", say="x", patience=0.3).open


@at_once
def test_refusal_by_http(server, daphne):
    seen = connect(server, "/http/echo")
    if daphne:
        assert str(seen) == "4013"
    else:
        assert seen.status == 503
        hint = float(HINT.fullmatch(seen.body)[1])
        assert 0 <= int(seen.header("retry-after")) - hint <= 1.1
        [*_, record] = server.wait_for_records(1, closecodes__refusal__mode="http")
        assert record["level"] == "warning"
        assert record["closecodes.gate.name"] == "max_sessions"


@at_once
def test_refusal_by_http_holds_no_socket(server, daphne):
    with Raw(server, "/http/echo") as peer:
        if not daphne:
            assert peer.answer() == 503
            while peer.socket.recv(65536):  # granian used to keep it for 30 s, longer than this waits
                pass


@at_once
def test_page_that_hammers_gets_http(server, daphne):
    """It is known by what it sends: another cookie is another page."""
    seen = [str(connect(server, "/auto/echo", additional_headers={"cookie": "a=1"}))[:8] for _ in range(5)]
    others = [connect(server, "/auto/echo", additional_headers={"cookie": f"b={number}"}) for number in range(20)]
    if daphne:  # it cannot answer by HTTP
        assert {one[:4] for one in seen} == {"4013"}
    else:
        assert [one[:4] for one in seen[:3]] == ["1013"] * 3
        assert seen[-1] == "HTTP 503"
    assert {one.code for one in others} == {4013 if daphne else 1013}


@at_once
def test_engine_io_gets_http(server, daphne):
    seen = connect(server, "/auto/echo?EIO=4&transport=websocket")
    assert str(seen)[:8] == ("4013" if daphne else "HTTP 503")


@at_once
def test_early_close_is_delivered(server, daphne):
    seen = connect(server, "/early/close-4401-before-accept", subprotocols=["chat", "v2"])
    assert (seen.code, seen.reason) == (4401, "" if daphne else "sign in")
    assert seen.subprotocol == "chat"
    assert str(connect(server, "/early-http/close-4401-before-accept")) == ("4401" if daphne else "HTTP 403")


@at_once
def test_many_refusals_fall_back_to_http(server, daphne):
    assert wait_until(lambda: connect(server, "/few/echo").code == (4013 if daphne else 1013))
    seen = [connect(server, "/few/echo") for _ in range(5)]
    if daphne:
        assert {str(one) for one in seen} == {"4013"}
    else:
        assert 503 in {one.status for one in seen}


@at_once
def test_keys_are_limited_one_by_one(server, daphne):
    with Raw(server, "/keyed/echo?a") as first, Raw(server, "/keyed/echo?b") as second:
        assert first.answer() == second.answer() == 101
        second.send(1, b"still there")
        assert second.frame() == (1, b"still there")
        assert connect(server, "/keyed/echo?a").code == (4013 if daphne else 1013)


@pytest.mark.parametrize(("path", "echoed"), [("/private/raise-before-accept", "first"), ("/offers/echo", "second")])
@at_once
def test_subprotocol_is_echoed_so_that_browsers_see_the_code(server, path, echoed):
    seen = connect(server, path, subprotocols=["first", "second"])
    assert seen.code in {4011, 1013, 4013}
    assert seen.subprotocol == echoed


@at_once
def test_scope_without_extensions_asgi_and_client(server, daphne):
    """A client may see its end before its place is free: each waits for it."""
    assert wait_until(is_empty(server, "bald"))
    seen = connect(server, "/bald/raise-before-accept")
    assert seen.code == 1011
    assert daphne or seen.ref
    assert wait_until(is_empty(server, "bald"))
    assert str(connect(server, "/bald/deny")) == "HTTP 403"
    assert wait_until(is_empty(server, "bald"))
    with Raw(server, "/bald/echo") as peer:
        assert peer.answer() == 101
        assert connect(server, "/bald/echo").code == (4013 if daphne else 1013)


# Peers that do not behave


@at_once
def test_peer_that_never_answers_a_close_holds_no_permit(server, holding):
    for path in ("raise-after-accept", "return-after-accept", "close-1013"):
        peer = holding.enter_context(Raw(server, f"/shed/{path}"))
        assert peer.answer() == 101
        assert peer.close_frame().code
    assert wait_until(is_empty(server, "shed"), within=30)


@at_once
def test_peer_that_does_not_read_is_given_up(server, setup):
    """It takes nothing, not even the close frame; the handler ends, and so does the session."""
    assert wait_until(is_empty(server, "one"))
    with Raw(server, "/one/flood-and-raise") as peer:
        assert peer.answer() == 101
        if setup == "hypercorn-trio":  # shields its writes from cancellation: nothing can end them but the peer
            time.sleep(4)
            assert not is_empty(server, "one")()
            peer.vanish()
        assert wait_until(is_empty(server, "one"))


@at_once
def test_peer_that_vanishes_gives_its_permit_back(server, news):
    assert wait_until(is_empty(server, "one"))
    for _ in range(5):
        peer = Raw(server, "/one/echo")
        assert peer.answer() == 101
        peer.send(1, b"hello")
        assert peer.frame() == (1, b"hello")
        peer.vanish()
        assert wait_until(is_empty(server, "one"))
    assert "Traceback" not in news()
    assert '"error"' not in news()


@pytest.mark.parametrize("paths", [["/one/echo", "/http/echo", "/few/echo", "/deny"], ["/raise-before-accept"]])
@at_once
def test_peer_that_leaves_at_once_leaves_nothing_behind(server, news, paths):
    for path in paths:
        for wait in (0, 0, 0.001, 0.003, 0.01):
            peer = Raw(server, path)
            time.sleep(wait)
            peer.vanish()
    for guard in ("", "one", "http", "few"):
        assert wait_until(is_empty(server, guard))
    if paths != ["/raise-before-accept"]:
        assert '"error"' not in news()


@at_once
def test_half_a_handshake_takes_no_permit(server):
    assert wait_until(is_empty(server, "one"))
    with server.connect() as half, Raw(server, "/one/echo") as peer:
        half.sendall(b"GET /one/echo HTTP/1.1\r\nHost: localhost\r\nUpgr")
        assert peer.answer() == 101


HOSTILE = {
    "a header of 100 KB": {"extra": b"X-Big: " + b"x" * 100_000 + b"\r\n"},
    "a subprotocol of 100 KB": {"extra": b"Sec-WebSocket-Protocol: " + b"p" * 100_000 + b"\r\n"},
    "no UTF-8": {"path": b"/\xff\xfe"},
    "no UTF-8, encoded, forged": {"path": b"/%ff%fe%0d%0a%1b[31mforged%20line"},
    "a long path": {"path": b"/one/%ff" + b"x" * 20_000},
}


@at_once
def test_hostile_handshake_harms_nobody(server, holding, news):
    peers = {name: holding.enter_context(Raw(server, **rest)) for name, rest in HOSTILE.items()}
    deadline = time.monotonic() + 2
    for name, peer in peers.items():
        peer.socket.settimeout(max(deadline - time.monotonic(), 0.1))
        try:
            if peer.answer() == 101:
                assert peer.close_frame().code == 1011, name
        except (OSError, TimeoutError):
            pass  # the server left, or waits for the rest
    assert connect(server, "/echo", say="x", patience=0.3).open
    assert "\x1b" not in news()
    assert not re.search("^forged", news(), re.MULTILINE)


def test_unix_socket_has_no_client(tmp_path):
    def check(running):
        with Raw(running, "/raise-after-accept") as peer:
            assert peer.answer() == 101
            assert peer.close_frame().code == 1011
        [record] = running.wait_for_records(1, event__name="closecodes.session.exception")
        assert not {"client.address", "client.port"} & {*record} or running.setup == "daphne"
        with Raw(running, "/one/echo") as peer:
            assert peer.answer() == 101
            peer.send(1, b"x")
            assert peer.frame() == (1, b"x")

    with serve_all("tests.live.servers.wrapped:wrapped", tmp_path, forked=False, unix=True) as servers:
        on_each(servers, check)


@at_once
def test_every_permit_is_free_in_the_end(server):
    for guard in ("", "one", "http", "auto", "few", "keyed", "reraise", "private", "debug", "bald", "offers", "shed"):
        assert wait_until(is_empty(server, guard)), guard
        assert all(gate["usage"] == 0 for gate in snapshot(server, guard)["gates"])


def failures(server, path):
    return server.records(event__name="closecodes.session.exception", url__path=path)


@at_once
def test_broadcast_to_a_shed_member_is_the_speakers_failure(server, daphne):
    earlier = len(failures(server, "/speak"))
    with Raw(server, "/shed/join") as member, Raw(server, "/speak") as speaker:
        assert member.answer() == speaker.answer() == 101
        assert wait_until(lambda: held(server, "shed") == 1)
        tell(server, "shed", shed="1")
        member.close_frame()
        speaker.send(1, b"hello")
        seen = speaker.close_frame()
    assert seen.code == 1011
    assert wait_until(lambda: len(failures(server, "/speak")) == earlier + 1)
    assert "another session's socket" in failures(server, "/speak")[-1]["message"]
    assert wait_until(is_empty(server, "shed"))


@pytest.mark.parametrize("path", ["close-in-finally", "answer-once", "converse"])
@at_once
def test_clean_up_after_the_client_left_is_no_error(server, path):
    earlier = len(failures(server, f"/{path}"))
    for _ in range(10):
        with Raw(server, f"/{path}") as peer:
            assert peer.answer() == 101
            peer.send(1, b"x") if path in {"answer-once", "converse"} else None
            peer.send(8, (1000).to_bytes(2))
    assert wait_until(is_empty(server, ""))
    assert len(failures(server, f"/{path}")) == earlier


@at_once
def test_failure_after_an_own_close_names_that_close(server, daphne):
    seen = connect(server, "/close-and-raise")
    assert seen.code == (4003 if daphne else 1003)
    assert wait_until(lambda: failures(server, "/close-and-raise"))
    assert failures(server, "/close-and-raise")[-1]["websocket.close.code"] == seen.code
