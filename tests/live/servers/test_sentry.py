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


def crash(server, app):
    """Have a session of ``app`` fail that is full of secrets."""
    extra = (
        f"Cookie: session={SECRETS['cookie']}\r\nX-Key: {SECRETS['header']}\r\n"
        f"Authorization: Bearer {SECRETS['authorization']}\r\n"
        f"Sec-WebSocket-Protocol: chat, {SECRETS['subprotocol']}\r\n"
    )
    with Raw(server, f"/{app}/rooms/{SECRETS['path']}?token={SECRETS['query']}", extra=extra.encode()) as raw:
        assert raw.answer() == 101
        raw.send(1, SECRETS["payload"].encode())
        return raw.close_frame().ref


APPS = ("starlette", "fastapi")


def sent(tmp_path, **env):
    """What went to Sentry when a session of each failed: their refs, the errors, and everything as text."""
    with serve("uvicorn-sansio", "tests.live.servers.sentried:app", tmp_path, env=env, forked=True) as server:
        refs = []
        for app in APPS:
            refs.append(crash(server, app))
            assert server.wait_for_records(len(refs), sentry="event"), server.log()
    # The server has ended: what it logs of an exception that travelled on has been sent too.
    everything = "\n".join(line for line in server.log().splitlines() if line.startswith('{"sentry"'))
    return refs, [record["payload"] for record in server.records(sentry="event")], everything


@pytest.mark.parametrize("reraise", ["false", "true"])
def test_one_failure_is_one_event_and_nothing_secret_is_in_it(reraise, tmp_path):
    refs, events, everything = sent(tmp_path, CLOSECODES_RERAISE=reraise)
    assert [name for name, secret in SECRETS.items() if secret in everything] == []
    for app, ref, event in zip(APPS, refs, events, strict=True):
        check(app, ref, event)


def check(app, ref, event):
    [error] = event["exception"]["values"]
    assert (error["type"], error["value"]) == ("ZeroDivisionError", "4 things")
    frame = error["stacktrace"]["frames"][-1]
    assert (frame["function"], frame["module"]) == ("room", "tests.live.servers.sentried")
    assert frame["context_line"].strip().startswith("raise ZeroDivisionError")
    assert event["logger"] == "asgi_closecodes.error"
    assert event["extra"]["closecodes.error.id"] == ref
    assert event["request"]["url"] == "ws://localhost/rooms/REDACTED"
    crumbs = [crumb["message"] for crumb in event["breadcrumbs"]["values"]]
    assert any(re.search(rf'"WebSocket /{app}/rooms/REDACTED" \[accepted\]', crumb) for crumb in crumbs)


def test_sentry_without_redaction_is_told_nearly_everything(tmp_path):
    _, _, everything = sent(tmp_path, NAIVE="1")
    told = {name for name, secret in SECRETS.items() if secret in everything}
    assert told >= {"path", "query", "header", "subprotocol", "payload"}
