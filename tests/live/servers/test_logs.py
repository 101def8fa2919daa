"""What stands in the logs of a real server, and what never does."""

import contextlib
import subprocess
import sys

import pytest
import websockets.sync.client

from tests.support.peers import connect, wait_until
from tests.support.servers import serve

from .at_once import on_each, serve_all

APP = "tests.live.servers.unconfigured:app"
CANARIES = {
    "query": "hunter2-query",
    "subprotocol": "bearer-of-canary",
    "cookie": "cookie-canary",
    "header": "header-canary",
    "path": "eyJhbGciOiJIUzI1NiJ9.e30.4Zm9vYmFyYmF6",
    "payload": "payload-canary",
}


def visit(running, path):
    """Connect with a secret in every place, and say one."""
    with (
        contextlib.suppress(websockets.exceptions.WebSocketException),
        websockets.sync.client.connect(
            f"{running.url}/{path}",
            subprotocols=[CANARIES["subprotocol"]],
            additional_headers={"Cookie": f"s={CANARIES['cookie']}", "Authorization": CANARIES["header"]},
            proxy=None,
        ) as websocket,
    ):
        websocket.send(CANARIES["payload"])
        websocket.recv()
        websocket.recv()


def test_stack_trace_without_configuration_is_on_stderr(tmp_path):
    with serve("uvicorn-sansio", APP, tmp_path) as running:
        seen = connect(running, "/crash/a", say="x")
        ref = seen.ref
        assert f"ref={ref}" in running.log()
        assert running.log().count("ValueError: 10 characters") == 1
        assert 'raise ValueError(f"{len(local)} characters")' in running.log()


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_files_for_uvicorn_work_as_they_stand(form, tmp_path):
    command = [sys.executable, "-m", "asgi_closecodes.logs", form]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    env = {"CLOSECODES_MAX_SESSIONS_PER_CLIENT": "5"}
    with serve("uvicorn-sansio", APP, tmp_path, "--log-config", path, "--access-log", env=env) as running:
        for kind in ("crash", "echo", "nowhere"):
            visit(running, f"{kind}/{CANARIES['path']}")
            visit(running, f"{kind}/a?token={CANARIES['query']}")
        error, _ = running.wait_for_records(2, event__name="closecodes.session.exception")
        assert error["exception.type"] == "ValueError"
        assert error["url.path"] == "/crash/REDACTED"
        assert error["http.route"] == "/crash/{name}"
        accepted = running.wait_for_records(4, logger="uvicorn.error")
        assert '"WebSocket /echo/REDACTED" [accepted]' in "".join(record["message"] for record in accepted)
        assert all(line.startswith("{") for line in running.log().splitlines())
        assert not [place for place, secret in CANARIES.items() if secret in running.log()]


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_is_written(form, tmp_path):
    def check(running):
        for kind in ("crash", "echo", "nowhere"):
            visit(running, f"{kind}/{CANARIES['path']}")
            visit(running, f"{kind}/a?token={CANARIES['query']}")
        seen = connect(running, "/crash/a%0d%0aforged%1b[31m%e2%80%a8%e2%80%ae", say="x")
        assert seen.code == 1011
        assert wait_until(lambda: running.log().count("ValueError: ") >= 3)
        log = running.log()
        assert form == "console" or "/crash/REDACTED" in log
        known = (
            {"path"} if running.setup == "daphne" else set()
        )  # its access log is for debugging, and cannot be switched off
        assert {place for place, secret in CANARIES.items() if secret in log} == known
        assert "\nforged" not in log
        assert not {"\x1b", "\u2028", "\u202e"} & {*log}

    with serve_all("tests.live.servers.logging_app:app", tmp_path, env={"FORM": form}) as servers:
        on_each(servers, check)
