"""One event in Sentry for one failure, with the real stack and without secrets."""

import re

import pytest

from tests.support.peers import Raw
from tests.support.servers import serve

SECRETS = {
    "path": "eyJhbGciOiJIUzI1NiJ9.Y2FuYXJ5LXBhdGg",
    "query": "canary-query",
    "cookie": "canary-cookie",
    "header": "canary-header",
    "authorization": "canary-bearer",
    "subprotocol": "canary-subprotocol",
    "payload": "canary-payload",
}


def crash(server):
    """Have a session fail that is full of secrets."""
    extra = (
        f"Cookie: session={SECRETS['cookie']}\r\nX-Key: {SECRETS['header']}\r\n"
        f"Authorization: Bearer {SECRETS['authorization']}\r\n"
        f"Sec-WebSocket-Protocol: chat, {SECRETS['subprotocol']}\r\n"
    )
    with Raw(server, f"/rooms/{SECRETS['path']}?token={SECRETS['query']}", extra=extra.encode()) as raw:
        assert raw.answer() == 101
        raw.send(1, SECRETS["payload"].encode())
        return raw.close_frame().ref


def sent(app, tmp_path, **env):
    """What went to Sentry when a session failed: its ref, the errors, and everything as text."""
    with serve("uvicorn-sansio", f"tests.live.servers.sentried:{app}", tmp_path, env=env) as server:
        ref = crash(server)
        assert server.wait_for_records(1, sentry="event"), server.log()
    # The server has ended: what it logs of an exception that travelled on has been sent too.
    everything = "\n".join(line for line in server.log().splitlines() if line.startswith('{"sentry"'))
    return ref, [record["payload"] for record in server.records(sentry="event")], everything


@pytest.mark.parametrize("reraise", ["false", "true"])
@pytest.mark.parametrize("app", ["starlette", "fastapi"])
def test_one_failure_is_one_event_and_nothing_secret_is_in_it(app, reraise, tmp_path):
    ref, [event], everything = sent(app, tmp_path, CLOSECODES_RERAISE=reraise)
    [error] = event["exception"]["values"]
    assert (error["type"], error["value"]) == ("ZeroDivisionError", "4 things")
    frame = error["stacktrace"]["frames"][-1]
    assert (frame["function"], frame["module"]) == ("room", "tests.live.servers.sentried")
    assert frame["context_line"].strip().startswith("raise ZeroDivisionError")
    assert event["logger"] == "asgi_closecodes.error"
    assert event["extra"]["closecodes.error.id"] == ref
    assert event["request"]["url"] == "ws://localhost/rooms/REDACTED"
    assert [name for name, secret in SECRETS.items() if secret in everything] == []
    crumbs = [crumb["message"] for crumb in event["breadcrumbs"]["values"]]
    assert any(re.search(r'"WebSocket /rooms/REDACTED" \[accepted\]', crumb) for crumb in crumbs)


def test_sentry_without_redaction_is_told_nearly_everything(tmp_path):
    _, _, everything = sent("starlette", tmp_path, NAIVE="1")
    told = {name for name, secret in SECRETS.items() if secret in everything}
    assert told >= {"path", "query", "header", "subprotocol", "payload"}
