"""The demo as a newcomer starts it, on each of its servers."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from demo_app.app import ENDINGS, PAGE
from tests.servers.clients import Raw, connect
from tests.servers.launch import ROOT, Running, stop

SEEN = {
    "crash-before-accept": r"1011 internal error; ref=\w{12}",
    "crash-after-accept": r"1011 internal error; ref=\w{12}",
    "close-on-purpose": "4003 closed on purpose",
    "try-again-later": r"1013 the database is busy; retry_after=5\.0; cause=database",
    "return-early": "1000",
    "close-badly": r"1011 (a reason of more than 123 bytes )+a reason of more than 123 b",
}


def start(*options, **environment):
    """Run ``python -m demo_app``."""
    return subprocess.Popen(
        [sys.executable, "-m", "demo_app", *options],
        cwd=ROOT,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("CLOSECODES_")}, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def outcome(*options, **environment):
    """Return the exit status and the output of a demo that does not start."""
    with start(*options, **environment) as process:
        try:
            output, errors = process.communicate(timeout=20)
        finally:
            stop(process)
    return process.returncode, output, errors


@contextlib.contextmanager
def running_demo(tmp_path, *options, **environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    process = start("--port", str(address[1]), *options, **environment)
    demo = Running(process, address, tmp_path / "none")
    url = f"http://127.0.0.1:{address[1]}"
    with contextlib.ExitStack() as stack:
        stack.callback(process.stderr.close)
        stack.callback(process.stdout.close)
        stack.callback(stop, process)
        demo.greeting = process.stdout.readline()
        transport = httpx.HTTPTransport(retries=8)  # with a growing delay between them
        demo.http = stack.enter_context(httpx.Client(base_url=url, transport=transport, timeout=10))
        assert demo.http.get("/healthz").json() == {"status": "ok"}
        yield demo


@pytest.fixture(scope="module", params=["uvicorn", "hypercorn", "granian"])
def demo(request, tmp_path_factory):
    with running_demo(tmp_path_factory.mktemp("demo"), "--server", request.param) as running:
        running.name = request.param
        yield running


def test_it_says_where_it_is(demo):
    assert demo.greeting == f"The demo is on http://127.0.0.1:{demo.address[1]}/ (served by {demo.name})\n"


@pytest.mark.parametrize("handler", SEEN)
def test_each_handler_ends_in_its_own_way(demo, handler):
    assert re.fullmatch(SEEN[handler], str(connect(demo, f"/{handler}", subprotocols=["demo.v1"])))


def test_a_message_may_crash_the_handler(demo):
    assert str(connect(demo, "/crash-on-message", say="4", patience=0.5)) == "open"
    assert connect(demo, "/crash-on-message", say="0").ref


def test_the_fourth_session_is_one_too_many(demo):
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            assert stack.enter_context(Raw(demo, "/echo")).answer() == 101
        assert connect(demo, "/echo").code == 1013
        assert demo.http.get("/state").json()["sessions"] == 3


def test_the_page_has_a_button_for_every_handler(demo):
    page = demo.http.get("/").text
    assert page == PAGE.read_text()
    for ending in ENDINGS:
        assert f'["{ending.__name__.replace("_", "-")}", ' in page


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian"])
def test_every_line_of_its_log_is_json_and_the_ref_finds_the_stack_trace(tmp_path, server):
    with running_demo(tmp_path, "--server", server, CLOSECODES_MAX_SESSIONS="1") as demo:
        ref = connect(demo, "/crash-after-accept").ref
        with Raw(demo, "/echo") as peer:
            assert peer.answer() == 101
            assert connect(demo, "/echo").code == 1013
        demo.process.send_signal(signal.SIGINT)
        _, errors = demo.process.communicate(timeout=20)
        assert demo.process.returncode == 0
        records = [json.loads(line) for line in errors.splitlines()]
    [failure] = [record for record in records if record.get("closecodes.error.id") == ref]
    assert "in crash_after_accept\n" in failure["exception.stacktrace"]
    assert failure["http.route"] == "/crash-after-accept"
    [refusal] = [record for record in records if record.get("event.name") == "closecodes.session.refused"]
    assert refusal["closecodes.gate.limit"] == 1


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian"])
def test_a_port_that_is_taken_is_one_clear_line(server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, output, errors = outcome("--server", server, "--port", str(port))
    assert (status, output) == (1, "")
    [line] = errors.splitlines()
    assert f"port {port} of 127.0.0.1" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (["--port", "99999999"], {}, "port 99999999"),
        (["--host", "192.0.2.1"], {}, "192.0.2.1"),
        ([], {"CLOSECODES_MAX_SESSIONS": "many"}, "max_sessions = 'many'"),
    ],
)
def test_what_cannot_be_used_is_said_without_a_stack_trace(options, environment, said):
    status, output, errors = outcome(*options, **environment)
    assert (status, output) == (1, "")
    assert said in errors
    assert "Traceback" not in errors
