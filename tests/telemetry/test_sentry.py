"""What before_send takes out of an event, and what it leaves."""

import logging

import pytest
import sentry_sdk
from sentry_sdk.integrations.logging import EventHandler

from asgi_closecodes.telemetry.sentry import before_send


def test_before_send_with_its_option_leaves_no_variables():
    """An option of sentry_sdk has frames go without them, in each kind of stack."""
    sent = []

    class Transport(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope):
            sent.append(envelope.get_event())

    client = sentry_sdk.Client(
        "http://key@127.0.0.1:9/1",
        transport=Transport,
        attach_stacktrace=True,
        default_integrations=False,  # they import every framework that is here
        include_local_variables=False,
        before_send=before_send,
    )
    with sentry_sdk.isolation_scope() as scope:
        scope.set_client(client)
        password = "hunter2"
        try:
            raise ValueError(len(password))
        except ValueError as error:
            sentry_sdk.capture_exception(error)
        EventHandler().handle(logging.LogRecord("some.logger", logging.ERROR, "app.py", 1, "said", (), None))
    client.close()
    assert len(sent) == 2
    assert "frames" in str(sent[0]["exception"])
    assert "frames" in str(sent[1]["threads"])
    assert "'vars'" not in str(sent)


def test_request_keeps_its_method_and_url():
    event = {
        "request": {
            "method": "GET",
            "url": "http://localhost/users/5?token=secret",
            "query_string": "token=secret",
            "data": {"password": "secret"},
            "cookies": {"session": "secret"},
            "headers": {"x-key": "secret"},
            "env": {"REMOTE_ADDR": "192.0.2.1"},
        }
    }
    assert before_send(event, {})["request"] == {"method": "GET", "url": "http://localhost/users/5"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('127.0.0.1:5 - "WebSocket /ws?token=secret" [accepted]', '127.0.0.1:5 - "WebSocket /ws" [accepted]'),
        ("GET https://example.org/a/b?secret#secret done", "GET https://example.org/a/b done"),
        ("https://example.org?secret", "https://example.org"),
        ("/rooms/eyJhbGciOiJIUzI1NiJ9.secret", "/rooms/REDACTED"),
        ("/rooms/%65yJhbGciOiJIUzI1NiJ9%2Esecret/a%20b", "/rooms/REDACTED/a%20b"),
        ("/rooms/lobby;jsessionid=1A2B3C", "/rooms/lobby;jsessionid=REDACTED"),
        ("/bot123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw/x", "/bot123456:REDACTED/x"),
        ("/rooms/dXNlcjpw%2FYXNzd29yZA%3D%3D", "/rooms/REDACTED%2FREDACTED"),
        ("redis://user:hunter2@host:6379/0", "redis://user:REDACTED@host:6379/0"),
        ('"GET *?token=secret" 101', '"GET *" 101'),
        ("CONNECT host:443?secret done", "CONNECT host:443 done"),
        ("/rooms/{room}", "/rooms/{room}"),
        ("/a%20b/c%2Fd", "/a%20b/c%2Fd"),
        ("what is this? 5 / 7 and/or nothing", "what is this? 5 / 7 and/or nothing"),
        ("app.endpoints.room", "app.endpoints.room"),
    ],
)
def test_addresses_in_texts(text, left):
    event = {
        "transaction": text,
        "breadcrumbs": {"values": [{"message": text, "data": {"url": text, "http.query": "secret", "status": 200}}]},
        "spans": [{"description": text, "data": {"url.query": "secret", "headers": {"x": "secret"}}}],
        "logentry": {"message": text, "params": [text, 5, None]},
        "contexts": {"trace": {"data": {"url": text}, "span_id": "0123456789abcdef"}},
        "message": text,
        "culprit": text,
        "extra": {"url.path": text, "count": 5},
        "tags": {"url": text},
    }
    assert before_send(event, {}) == {
        "transaction": left,
        "breadcrumbs": {"values": [{"message": left, "data": {"url": left, "status": 200}}]},
        "spans": [{"description": left, "data": {}}],
        "logentry": {"message": left, "params": [left, 5, None]},
        "contexts": {"trace": {"data": {"url": left}, "span_id": "0123456789abcdef"}},
        "message": left,
        "culprit": left,
        "extra": {"url.path": left, "count": 5},
        "tags": {"url": left},
    }


def test_headers_go_from_a_span():
    data = {"http.request.header.authorization": ["secret"], "http.response.header.set_cookie": "secret", "x": 5}
    assert before_send({"spans": [{"data": data}]}, {}) == {"spans": [{"data": {"x": 5}}]}


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"exception": None, "request": None, "breadcrumbs": None, "transaction": None},
        {"exception": [], "request": "", "threads": 5, "breadcrumbs": [], "contexts": ""},
    ],
)
def test_odd_event_is_sent_as_it_is(event):
    """Sentry drops the event when this raises."""
    before = repr(event)
    assert repr(before_send(event, {})) == before
