"""Each event is one record that people and machines can read, and that tells no secret."""

import dataclasses
import json
import logging
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from asgi_closecodes import Close, CloseCodeMiddleware, CloseWith, Guard, Settings, TryAgainLater, events
from asgi_closecodes.gates import MaxSessions
from asgi_closecodes.logs import JsonFormatter, LogObserver
from asgi_closecodes.logs.messages import LINES
from tests.support.asgi import Handler, Peer
from tests.support.every_event import CLOSE, EVENTS, FACTS, LOGGED


def written(record):
    return json.loads(JsonFormatter().format(record))


def test_every_kind_of_event_is_tried():
    assert {type(event) for event in EVENTS} == set(events.KINDS)
    # The summaries say it; nothing has ended at an admission; ClusterUnreachable says what failed syncs have in common.
    unlogged = {events.LogsSuppressed, events.SessionAdmitted, events.ClusterSynced, events.ClusterSyncFailed}
    assert LINES.keys() == set(events.KINDS) - unlogged


@pytest.mark.parametrize("name", LOGGED)
def test_event_is_one_record(records, name):
    event = LOGGED[name]
    LogObserver()(event)
    [record] = records
    keys = written(record)
    assert keys["event.name"] == name
    assert all("." in key or key in {"timestamp", "level", "logger", "message"} for key in keys)
    assert None not in keys.values()
    if hasattr(event, "session") and event.session:
        assert keys["closecodes.session.id"] == "0123456789ab"
        assert keys["http.route"] == "/rooms/{id}"
        assert keys["url.path"] == "/rooms/5"
        assert keys["client.address"] == "192.0.2.1"
        assert keys["client.port"] == 50000
        assert keys["network.protocol.name"] == "websocket"
        assert "/rooms/{id}" in record.getMessage() or name == "closecodes.gate.failed"


class OwnGateFull(events.GateSaturated):
    """As a gate of a user's reports it."""


def test_event_of_a_subclass_is_logged_as_its_base_class(records):
    guard = Guard(Settings())
    records.clear()
    guard.report(OwnGateFull("rooms", "full", 5.0, 5.0))
    [record] = records
    assert written(record)["event.name"] == "closecodes.gate.saturated"
    assert "rooms" in record.getMessage()


def test_keys_of_a_failure(records):
    LogObserver()(LOGGED["closecodes.session.exception"])
    keys = written(records[0])
    assert (
        keys.items()
        >= {
            "closecodes.error.id": "ABCDEFGHJKMN",
            "closecodes.error.phase": "open",
            "websocket.close.code": 1011,
            "websocket.close.reason": "internal error; ref=ABCDEFGHJKMN",
            "websocket.close.sent": True,
            "closecodes.session.duration": 1.5,
            "closecodes.session.messages.received": 2,
            "closecodes.session.messages.sent": 3,
            "exception.type": "ValueError",
        }.items()
    )
    assert len(keys["closecodes.error.fingerprint"]) == 12
    assert keys["message"] == "ValueError in the WebSocket handler of /rooms/{id}; close code 1011; ref=ABCDEFGHJKMN"


def test_keys_of_a_refusal(records):
    LogObserver()(LOGGED["closecodes.session.refused"])
    assert (
        written(records[0]).items()
        >= {
            "closecodes.gate.name": "max_sessions",
            "closecodes.gate.cause": "full",
            "closecodes.gate.usage": 5,
            "closecodes.gate.limit": 5,
            "closecodes.refusal.mode": "close",
            "closecodes.refusal.retry_after": 2.3,
        }.items()
    )


def test_close_in_the_shadow_is_told_from_a_refusal(records):
    LogObserver()(events.SessionRefused(replace(FACTS, phase="open"), CLOSE, "auth_timeout", "auth", 0.0, "shadow"))
    assert records[0].getMessage() == "would have closed a session of /rooms/{id}: auth_timeout (auth)"


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("close", "refused a session of /rooms/{id}: max_sessions (full); retry after 2.3 s"),
        ("http", "refused a session of /rooms/{id}: max_sessions (full); retry after 2.3 s"),
        ("shadow", "would have refused a session of /rooms/{id}: max_sessions (full)"),
    ],
)
def test_refusal_in_the_shadow_is_told_from_a_real_one(records, mode, message):
    facts = replace(FACTS, phase="connecting")
    LogObserver()(events.SessionRefused(facts, CLOSE, "max_sessions", "full", 2.3, mode, 5, 5))
    assert records[0].getMessage() == message
    assert written(records[0])["closecodes.refusal.mode"] == mode


def test_suppressed_refusals_are_counted_by_how_they_were_told(records):
    """A storm is refused by close and by HTTP, and sheds with several codes: each number is of one of them."""
    observer = LogObserver()
    for _ in range(10):
        observer(events.SessionShed(FACTS, Close(3000), "close_sessions", None))
        observer(events.SessionShed(FACTS, Close(4003), "close_sessions", None))
        observer(events.SessionRefused(FACTS, CLOSE, "max_sessions", "full", 2.3, "close", 5, 5))
        for _ in range(2):
            observer(events.SessionRefused(FACTS, None, "max_sessions", "full", 2.3, "http", 5, 5))
    observer.flush_summaries(now=True)
    counts = Counter()
    for record in map(written, records):
        told = record.get("closecodes.refusal.mode"), record.get("websocket.close.code")
        is_summary = record["event.name"] == "closecodes.refusals.suppressed"
        counts[told] += record["closecodes.refusal.suppressed"] + (not is_summary)
    assert counts == {(None, 3000): 10, (None, 4003): 10, ("close", int(CLOSE.code)): 10, ("http", None): 20}


def test_refusal_for_lag_names_the_setting_that_tells_more(records):
    LogObserver()(events.SessionRefused(FACTS, CLOSE, "max_loop_lag", "lag", 2.3, "close", 5, 5))
    assert records[0].getMessage().endswith("; retry after 2.3 s; log_stalls names the line that blocks")


def test_stall_says_the_line_and_has_the_stack(records):
    LogObserver()(events.LoopStalled(1.234, "0123456789ab", 3, "Stack", "/app/a\nb.py", 42, "join", FACTS))
    assert records[0].getMessage() == "the event loop stood still for 1.23 s at /app/a\\nb.py:42 in join of /rooms/{id}"
    assert (
        written(records[0]).items()
        >= {
            "closecodes.stall.duration": 1.234,
            "closecodes.stall.fingerprint": "0123456789ab",
            "closecodes.stall.looks": 3,
            "code.line.number": 42,
            "code.function.name": "join",
            "code.stacktrace": "Stack",
            "closecodes.session.id": FACTS.id,
            "http.route": "/rooms/{id}",
        }.items()
    )


def test_stall_without_a_stack_says_why(records):
    LogObserver()(events.LoopStalled(1.234, "unknown", 1))
    assert "in no code of its own: a thread held the GIL, or CPU was short" in records[0].getMessage()
    assert not {key for key in written(records[0]) if key.startswith("code.")}


@pytest.mark.parametrize(("is_overload", "level"), [(True, "WARNING"), (False, "INFO")])
def test_severity_is_what_the_refusal_says(records, is_overload, level):
    LogObserver()(events.SessionRefused(FACTS, CLOSE, "Mine", "busy", 1.0, "close", is_overload=is_overload))
    LogObserver()(events.SessionShed(FACTS, CLOSE, "busy", 1.0, is_overload=is_overload))
    assert {record.levelname for record in records} == {level}


@pytest.mark.parametrize(
    ("options", "path", "client", "port"),
    [
        ({}, "/rooms/REDACTED", "192.0.2.1", 50000),
        ({"log_path": "raw"}, "/rooms/0123456789abcdef0123", "192.0.2.1", 50000),
        ({"log_path": "off"}, None, "192.0.2.1", 50000),
        ({"log_client": "truncated"}, "/rooms/REDACTED", "192.0.2.0/24", None),
        ({"log_client": "off"}, "/rooms/REDACTED", None, None),
    ],
)
@pytest.mark.anyio
async def test_detail_of_paths_and_clients_can_be_set(records, options, path, client, port):
    app = CloseCodeMiddleware(Handler(ValueError()), Guard(Settings(**options)))
    await Peer(path="/rooms/0123456789abcdef0123").visit(app)
    [keys] = [written(record) for record in records if record.levelname == "ERROR"]
    assert (keys.get("url.path"), keys.get("client.address"), keys.get("client.port")) == (path, client, port)
    assert "0123456789abcdef" not in keys["message"] or "raw" in options.values()


SECRETS = ("hunter2", "correct-horse", "bearer-token", "battery-staple", "the-payload")


@pytest.mark.anyio
@pytest.mark.parametrize("error", [None, ValueError("x"), CloseWith(4000), TryAgainLater(), OSError("x")])
@pytest.mark.parametrize("limit", [None, 0])
async def test_no_record_holds_a_secret(records, error, limit):
    peer = Peer(
        "the-payload",
        query_string=b"token=hunter2",
        headers=[(b"cookie", b"session=correct-horse"), (b"authorization", b"Bearer bearer-token")],
        subprotocols=["battery-staple"],
    )
    await peer.visit(CloseCodeMiddleware(Handler(error), Guard(Settings(), gate=MaxSessions(limit))))
    assert records
    for record in records:
        text = JsonFormatter().format(record) + repr(vars(record))
        assert not [secret for secret in SECRETS if secret in text]


@pytest.mark.anyio
async def test_forged_path_and_a_client_s_reason_stay_on_their_line(records):
    class Forger(Peer):
        async def receive(self):
            message = await super().receive()
            return {**message, "reason": "bye\nERROR forged\x1b[2J"} if "disconnect" in message["type"] else message

    await Forger(path="/x\r\nERROR forged\x1b[2J").visit(CloseCodeMiddleware(Handler(), Guard(Settings())))
    assert records
    for record in records:
        assert record.getMessage().isprintable()
        assert JsonFormatter().format(record).isprintable()
        assert "\n" not in repr(record.getMessage())


@pytest.mark.anyio
async def test_level_that_is_off_costs_nothing(caplog, monkeypatch):
    caplog.set_level(logging.CRITICAL, "asgi_closecodes")
    observer = LogObserver()
    monkeypatch.setattr(observer._redactor, "keys", lambda session: 1 / 0)
    for name in ("closecodes.session.exception", "closecodes.session.opened", "closecodes.session.closed"):
        observer(LOGGED[name])


def test_error_without_logging_configured_appears_on_stderr():
    """Without any configuration an error and its stack trace appear on stderr."""
    program = """
import anyio
from asgi_closecodes import CloseCodeMiddleware
from tests.support.asgi import Handler, Peer
peer = Peer()
anyio.run(peer.visit, CloseCodeMiddleware(Handler(ValueError("the text"))))
print(peer.closed[1])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ref = done.stdout.strip().removeprefix("internal error; ref=")
    assert f"close code 1011; ref={ref}" in done.stderr
    assert "ValueError: the text" in done.stderr
    assert done.stderr.count("Traceback") == 1


@pytest.mark.parametrize(
    ("cause", "told"), [("drain", "drained a session of /rooms/{id}; "), ("full", "shed a session")]
)
def test_drained_session_is_told_as_drained(records, cause, told):
    LogObserver()(events.SessionShed(FACTS, Close(1012), cause, 1.0))
    assert records[0].getMessage().startswith(told)
    assert "1012" in records[0].getMessage()


@pytest.mark.parametrize("route", ["/100%/{id}", "/%s"])
def test_route_with_a_percent_sign_is_told_as_it_is(records, route):
    facts = dataclasses.replace(FACTS, route=route)
    for cause in ("drain", "full"):
        LogObserver()(events.SessionShed(facts, Close(1012), cause, 1.0))
    assert all(route in record.getMessage() for record in records)
