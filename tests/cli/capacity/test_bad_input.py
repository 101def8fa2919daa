"""Servers and options that cannot be used: one clear line each."""

import pytest

from asgi_closecodes.cli.capacity import measure
from tests.cli.command import invoke, run
from tests.support.ports import free_port

QUICK = ("--every", "50ms", "--hold", "100ms", "--most", "2", "--p99", "30s")


def refused(*arguments, status=2):
    output, errors = invoke("capacity", *arguments, status=status)
    assert output == ""
    [line] = errors.splitlines()
    return line.removeprefix("asgi-closecodes: ")


def usage(*arguments):
    output, errors = invoke("capacity", *arguments, status=2)
    assert output == ""
    return errors.splitlines()[-1]


def test_server_that_is_not_there_is_named():
    port = free_port()
    said = refused(f"ws://127.0.0.1:{port}/")
    assert said == f"nobody listens at 127.0.0.1 port {port}; start the server, or check the port"


def test_host_that_is_not_there_is_named():
    assert refused("ws://nowhere.invalid/") == "there is no host nowhere.invalid; check its name"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "there is no WebSocket: did not receive a valid HTTP response"),
        (b"", "there is no WebSocket: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "the server answers the handshake with HTTP 200"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "there is no WebSocket: "),
        (b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n\r\n", "does it want a cookie or a token (--header)?"),
    ],
)
def test_server_without_websockets_is_told(says, answer, said):
    assert said in refused(says(answer))


def test_server_that_answers_nothing_is_told(says, monkeypatch):
    monkeypatch.setattr("asgi_closecodes.cli.capacity.load.HANDSHAKE_TIMEOUT_S", 0.2)
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        said = refused(f"ws://127.0.0.1:{listener.getsockname()[1]}/")
    assert said.startswith("the server did not answer the handshake within ")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "/closes",
            r"closes the session at once: close 4401 (who are you? \x1b[31m); does it want a cookie or a token",
        ),
        ("/cookie", "refuses the handshake: HTTP 403; does it want a cookie or a token (--header)?"),
        ("/redirects", "the server redirects (HTTP 307) to /elsewhere; give that address"),
        ("/missing", "there is no WebSocket at this path: HTTP 404"),
    ],
)
def test_server_that_does_not_want_it_is_told(server, path, said):
    assert said in refused(server.url + path)


def test_cookie_lets_it_in(server):
    output, _ = invoke("capacity", server.url + "/cookie", *QUICK, "--header", "Cookie: session=secret-7")
    assert "CLOSECODES_MAX_SESSIONS=1" in output
    assert "secret" not in output


def test_subprotocols_are_offered_by_a_header(server):
    assert "HTTP 403" in refused(server.url + "/chosen")
    assert invoke("capacity", server.url + "/chosen", *QUICK, "--header", "Sec-WebSocket-Protocol: v1, v2")[0]


def test_message_that_is_not_answered_is_told(server, monkeypatch):
    monkeypatch.setattr(measure, "ANSWER_TIMEOUT_S", 0.2)
    assert "does not answer a message within 0 s" in refused(server.url + "/mute", "--message", "hello")
    assert invoke("capacity", server.url + "/mute", *QUICK)[0], "pings it answers"


# TLS


def test_private_authority_is_named_by_its_file(secure, authority):
    url = secure.url.replace("ws://", "wss://")
    assert "--ca FILE" in refused(url)
    assert "CLOSECODES_MAX_SESSIONS=1" in invoke("capacity", url, *QUICK, "--ca", authority / "ca.pem")[0]


def test_certificate_of_another_host_is_told(secure, authority):
    said = refused(secure.url.replace("ws://127.0.0.1", "wss://localhost"), "--ca", authority / "ca.pem")
    assert said.startswith("the certificate is not that of localhost, or not valid: ")


def test_tls_and_none_that_are_mixed_up_are_told(server, secure):
    assert "use ws:// instead of wss://" in refused(server.url.replace("ws://", "wss://"))
    assert "there is no WebSocket: " in refused(secure.url)


@pytest.mark.parametrize("content", [None, "", "no certificate", b"\xff"])
def test_file_without_certificates_is_told(tmp_path, content):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    assert "has no certificates; give a file with some in PEM" in usage("wss://127.0.0.1/", "--ca", file)


def test_authority_without_tls_is_told(authority):
    assert "--ca is only for wss://" in usage("ws://127.0.0.1/", "--ca", authority / "ca.pem")


# Options


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "127.0.0.1:8000",
        "ws://",
        "ws:///path",
        "ws://127.0.0.1:99999/",
        "ws://127.0.0.1:port/",
        "ws://[::1/",
        "ws://127.0.0.1/#part",
        "ws://127.0.0.1/a b",
        "ws://secret@127.0.0.1/",
        "http://user:secret@127.0.0.1/?token=secret",
        "",
    ],
)
def test_address_that_is_none_is_refused(url):
    said = usage(url)
    assert said.endswith("give one as ws://127.0.0.1:8000/path or wss://host/path")
    assert "secret" not in said


@pytest.mark.parametrize("option", ["--p99", "--every", "--hold"])
@pytest.mark.parametrize("value", ["", "250", "0ms", "-1s", "1e3s", "nan", "2h", "1 s", "inf", "99999s"])
def test_time_that_is_none_is_refused(option, value):
    assert "use a time with its unit, as 250ms or 1.5s" in usage("ws://127.0.0.1/", option, value)


@pytest.mark.parametrize(
    "value",
    [
        "secret",
        ": secret",
        "a b: secret",
        "Upgrade: secret",
        "sec-websocket-key: secret",
        "A: secret\r\nB: c",
        "A: sécret",
    ],
)
def test_header_that_cannot_be_sent_is_refused(value):
    said = usage("ws://127.0.0.1/", "--header", value)
    assert "--header" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "options", [("--most", "0"), ("--most", "many"), ("--pid", "0"), ("--pid", "x"), ("--pid", 2**40)]
)
def test_number_that_is_none_is_refused(options):
    assert options[0] in usage("ws://127.0.0.1/", *options)


@pytest.mark.parametrize("missing", ["psutil", "websockets"])
def test_without_its_extra_it_says_so(missing, tmp_path):
    (tmp_path / missing).mkdir()
    (tmp_path / missing / "__init__.py").write_text(f"raise ModuleNotFoundError('no', name={missing!r})")
    from tests.cli.command import ENVIRONMENT

    path = f"{tmp_path}:{ENVIRONMENT.get('PYTHONPATH', '')}"
    errors = run("capacity", "ws://127.0.0.1/", status=2, env={**ENVIRONMENT, "PYTHONPATH": path})[1]
    assert errors.endswith(f"{missing} is missing; pip install 'asgi-closecodes[cli]'\n")
