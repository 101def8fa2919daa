"""Deadlines of open sessions on live servers: each code and cause."""

import contextlib
import re

import pytest

from tests.support.peers import Raw, held, snapshot, tell, wait_until

from .at_once import at_once, on_each

AGE = r"1012 session age reached; retry_after=[0-5]\.[0-9]; cause=age"

ENDS = {
    "age": ({"max_session_age": "0.5"}, 1012, AGE),
    "auth": ({"auth_timeout": "0.3"}, 3000, "3000 authentication timeout; cause=auth"),
    "expired": ({"expires_in": "0.3"}, 3000, "3000 credentials expired; cause=expired"),
    "close_sessions": ({"sign_out": "3003"}, 3003, "3003 signed out"),
}
"""By cause: what the guard is told, the code, and what a client sees."""


@pytest.fixture
def servers(servers):
    yield servers
    on_each(servers, clear)


def clear(server):
    tell(server, "shed", max_session_age="None", auth_timeout="None", shadow="none")
    tell(server, "shed", sign_out="4000")
    assert wait_until(lambda: held(server, "shed") == 0, within=30)


def sheds(server, cause):
    return snapshot(server, "shed")["sheds"].get(cause, 0)


@pytest.mark.parametrize(
    ("handler", "mute"),
    [("echo", False), ("echo", True), ("send-only", False)],
    ids=["polite", "mute", "sending"],
)
@pytest.mark.parametrize("cause", ENDS)
@at_once
def test_session_is_closed_with_its_code_and_cause(server, setup, cause, handler, mute):
    """Set while it is open, or before; the handler waits for its peer, or sends to it."""
    what, code, text = ENDS[cause]
    if handler == "send-only" and cause in {"age", "auth"}:
        tell(server, "shed", **what)
    before = sheds(server, cause)
    with Raw(server, f"/shed/{handler}") as peer:
        assert peer.answer() == 101
        assert wait_until(lambda: held(server, "shed") == 1) or sheds(server, cause) > before
        tell(server, "shed", **what)
        seen = peer.close_frame()
        if setup == "daphne":  # sends no reasons, and 4012 instead of 1012
            code, text = (4012, "4012") if code == 1012 else (code, str(code))
        assert re.fullmatch(text, str(seen))
        if not mute:
            with contextlib.suppress(ConnectionError):
                peer.send(8, seen.code.to_bytes(2))
        assert wait_until(lambda: held(server, "shed") == 0, within=30)
    assert sheds(server, cause) == before + 1
    [*_, record] = server.wait_for_records(
        before + 1, event__name="closecodes.session.shed", closecodes__gate__cause=cause
    )
    assert (record["websocket.close.code"], record["level"]) == (code, "info")


@at_once
def test_deadline_in_the_shadow_ends_nobody(server):
    tell(server, "shed", shadow="all")
    tell(server, "shed", max_session_age="0.2", auth_timeout="0.2")
    with Raw(server, "/shed/echo") as peer:
        assert peer.answer() == 101
        records = server.wait_for_records(
            2, event__name="closecodes.session.refused", closecodes__refusal__mode="shadow"
        )
        assert sorted(record["closecodes.gate.cause"] for record in records) == ["age", "auth"]
        peer.send(1, b"x")
        assert peer.frame() == (1, b"x")
