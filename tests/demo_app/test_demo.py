"""The demo's handlers, controls and feed, on each of its servers; tests/live/browser clicks on its page."""

import contextlib
import inspect
import json
import re
import signal
import socket

import pytest
import websockets.exceptions
import websockets.sync.client

from demo_app import controls, hosts
from demo_app.app import PAGE
from demo_app.handlers import ENDINGS
from tests.support.demo import outcome, running_demo
from tests.support.peers import Raw, connect, wait_until

SERVERS = ["uvicorn", "hypercorn", "granian"]
SEEN = {
    "crash-before-accept": r"1011 internal error; ref=\w{12}",
    "crash-after-accept": r"1011 internal error; ref=\w{12}",
    "close-on-purpose": "4003 closed on purpose",
    "try-again-later": r"1013 the database is busy; retry_after=5\.0; cause=database",
    "return-early": "1000",
    "close-badly": r"1011 (a reason of more than 123 bytes )+a reason of more than 123 b",
}


def state_of(demo):
    """Return the guard's snapshot, without what changes by itself."""
    return {key: value for key, value in demo.http.get("/state").json().items() if key not in {"loop_lag", "waiting"}}


@pytest.fixture(scope="module", params=SERVERS)
def demo(request, tmp_path_factory):
    with running_demo(tmp_path_factory.mktemp("demo"), "--server", request.param) as running:
        running.name = request.param
        yield running


@contextlib.contextmanager
def feed(demo, **options):
    """What the page is told, message by message."""
    with websockets.sync.client.connect(f"{demo.url}/feed", proxy=None, **options) as websocket:
        yield lambda: json.loads(websocket.recv(timeout=10))


def test_demo_says_where_it_is(demo):
    assert demo.greeting == f"The demo is on http://127.0.0.1:{demo.address[1]}/ (served by {demo.name})\n"


@pytest.mark.parametrize("handler", SEEN)
def test_each_handler_ends_in_its_own_way(demo, handler):
    assert re.fullmatch(SEEN[handler], str(connect(demo, f"/{handler}", subprotocols=["demo.v1"])))


def test_message_may_crash_the_handler(demo):
    assert str(connect(demo, "/crash-on-message", say="4", patience=0.5)) == "open"
    assert connect(demo, "/crash-on-message", say="0").ref


def test_demo_without_the_middleware_tells_nobody_anything(demo):
    code = {"uvicorn": 1006, "hypercorn": 1011, "granian": 1005}[demo.name]
    seen = connect(demo, "/bare/crash-on-message", say="0")
    assert (seen.code, seen.reason) == (code, "")


def test_more_sessions_than_it_takes(demo):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            assert stack.enter_context(Raw(demo, "/echo")).answer() == 101
        assert connect(demo, "/echo").code == 1013
        assert state_of(demo)["open"] == 20
        bare = stack.enter_context(Raw(demo, "/bare/echo"))
        assert bare.answer() == 101
        with feed(demo) as told:
            state = told()
            assert (state["sessions"], state["limit"], state["draining"], state["bare"]) == (20, 20, False, 1)
    assert wait_until(lambda: state_of(demo)["open"] == 0)


def test_page_loads_nothing_from_elsewhere(demo):
    answer = demo.http.get("/")
    assert answer.text == PAGE.read_text()
    for path in {"/", *re.findall(r'(?:src|href)="(/[^"]+)"', answer.text), "/static/reconnecting-websocket.js"}:
        answer = demo.http.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
        assert not re.search(r"""["'(](https?:)?//(?!www\.w3\.org)""", answer.text), path


def test_page_can_show_every_handler(demo):
    script = demo.http.get("/static/demo.js").text
    for ending in ENDINGS:
        assert ending.__name__ == "echo" or f'"/{ending.__name__.replace("_", "-")}"' in script


def test_feed_tells_the_log_with_the_ref_and_the_stack_trace(demo):
    ref = connect(demo, "/crash-after-accept").ref
    with feed(demo) as told:
        lines = [json.loads(line) for line in told()["lines"]]
        [failure] = [line for line in lines if line.get("closecodes.error.id") == ref]
        assert "in crash_after_accept\n" in failure["exception.stacktrace"]
        while told()["lines"]:
            pass
        ref = connect(demo, "/crash-after-accept").ref
        while not (news := told()["lines"]):
            pass
        assert json.loads(news[0])["closecodes.error.id"] == ref


def test_limit_of_0_does_not_keep_the_page_from_its_feed(demo):
    assert demo.http.post("/control/limit", json={"max_sessions": 0}).status_code == 204
    assert connect(demo, "/echo").code == 1013
    with feed(demo) as told:
        assert told()["limit"] == 0
    assert demo.http.post("/control/limit", json={"max_sessions": 20}).status_code == 204
    assert str(connect(demo, "/echo", patience=0.2)) == "open"


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"{}", b'{"max_sessions": -1}', b'{"max_sessions": "many"}'])
def test_limit_that_is_none_is_refused_with_the_remedy(demo, body):
    answer = demo.http.post("/control/limit", content=body)
    assert answer.status_code == 400
    assert answer.text.startswith('send {"max_sessions": NUMBER}: ')
    assert [gate["limit"] for gate in state_of(demo)["gates"] if gate["name"] == "max_sessions"] == [20]


def test_drain_and_a_fresh_start(demo):
    with Raw(demo, "/echo") as peer:
        assert peer.answer() == 101
        assert demo.http.post("/control/drain").status_code == 204
        assert peer.close_frame().code == 1012
        assert connect(demo, "/echo").code == 1012
    assert demo.http.post("/control/resume").status_code == 204
    assert str(connect(demo, "/echo", patience=0.2)) == "open"


def test_after_a_stall_newcomers_are_told_to_come_later(tmp_path):
    with running_demo(tmp_path, forked=True) as demo:
        assert demo.http.post("/control/stall").status_code == 204
        assert re.fullmatch(
            r"1013 try again later; retry_after=\d+\.\d; cause=lag", str(connect(demo, "/echo", patience=1))
        )


def test_stall_is_in_the_log_with_the_line_that_slept(tmp_path):
    [slept] = [line for line in inspect.getsource(controls).splitlines() if "time.sleep(STALL_S)" in line]
    with running_demo(tmp_path, forked=True) as demo, feed(demo) as told:
        assert demo.http.post("/control/stall").status_code == 204
        stack = ""
        while slept.strip() not in stack:
            records = map(json.loads, told()["lines"])
            stack = "".join(one.get("code.stacktrace", "") for one in records)


@pytest.mark.parametrize("action", ["limit", "stall", "drain", "resume"])
def test_other_sites_pages_do_not_steer_it(demo, action):
    before = state_of(demo)
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        answer = demo.http.post(f"/control/{action}", json={"max_sessions": 0}, headers={"Origin": origin})
        assert answer.status_code == 403
    assert demo.http.get(f"/control/{action}").status_code == 405
    assert state_of(demo) == before


def test_other_sites_pages_do_not_read_its_log(demo):
    assert connect(demo, "/feed", origin="http://evil.example").status == 403
    with feed(demo, origin=demo.page) as told:
        assert told()


def ask(demo, method, path, *lines):
    """The status of the answer to these bytes: clients have opinions on Host."""
    with demo.connect() as plain:
        plain.sendall("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "Content-Length: 0", "", ""]).encode("latin-1"))
        answer = b""
        while b"\r\n\r\n" not in answer and (received := plain.recv(65536)):
            answer += received
    return int(answer.split()[1])


HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {'A' * 22}==",
)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "localhost.evil.example:{port}", "[::2]:{port}"]
)
def test_demo_rebound_name_is_refused(demo, host):
    """A page whose name was made to point here has an Origin that is its Host."""
    host = host.format(port=demo.address[1])
    before = state_of(demo)
    lines = f"Host: {host}", f"Origin: http://{host}"
    for action in ("limit", "stall", "drain", "resume"):
        assert ask(demo, "POST", f"/control/{action}", *lines) == 400
    assert ask(demo, "GET", "/state", *lines) == 400
    for path in ("/feed", "/echo", "/bare/echo"):
        assert ask(demo, "GET", path, *lines, *HANDSHAKE) == 400
    assert state_of(demo) == before


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}"])
def test_demo_own_name_is_taken(demo, host):
    host = host.format(port=demo.address[1])
    lines = f"Host: {host}", f"Origin: http://{host}"
    assert ask(demo, "POST", "/control/resume", *lines) == 204
    assert ask(demo, "GET", "/feed", *lines, *HANDSHAKE) == 101


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("demo.example", ["demo.example"]),
        ("::1", ["[::1]"]),
        ("0:0:0:0:0:0:0:1", ["[::1]"]),
        ("192.0.2.7", ["192.0.2.7"]),
        ("0.0.0.0", ["0.0.0.0", socket.gethostname()]),
    ],
)
def test_demo_host_option_names_itself(monkeypatch, host, names):
    monkeypatch.setenv(hosts.VARIABLE, "given.example, other.example")
    hosts.allow(host)
    assert {"localhost", "given.example", "other.example", *names} <= {*hosts.allowed()}


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//", "\xff"])
def test_demo_origin_that_is_none_is_refused(demo, origin):
    lines = f"Host: 127.0.0.1:{demo.address[1]}", f"Origin: {origin}"
    assert ask(demo, "POST", "/control/limit", *lines) == 403
    assert ask(demo, "GET", "/feed", *lines, *HANDSHAKE) == 403
    assert not [record for record in demo.records(level="error") if "Invalid IPv6 URL" in str(record)]


def test_demo_deep_json_is_refused(demo):
    assert demo.http.post("/control/limit", content=b"[" * 100_000).status_code == 400
    assert not [record for record in demo.records(level="error") if "RecursionError" in str(record)]


def test_feed_takes_whatever_a_page_says(demo):
    with websockets.sync.client.connect(f"{demo.url}/feed", proxy=None) as websocket:
        websocket.send(b"\xff")
        websocket.send("x" * 1000)
        for _ in range(3):
            assert json.loads(websocket.recv(timeout=10))["limit"] == 20


@pytest.mark.parametrize("server", SERVERS)
def test_demo_log_is_json_and_the_ref_finds_the_stack_trace(tmp_path, server):
    with running_demo(tmp_path, "--server", server, CLOSECODES_MAX_SESSIONS="1") as demo:
        ref = connect(demo, "/crash-after-accept").ref
        assert wait_until(lambda: state_of(demo)["open"] + state_of(demo)["leaving"] == 0)
        with Raw(demo, "/echo") as peer:
            assert peer.answer() == 101
            assert connect(demo, "/echo").code == 1013
            assert demo.wait_for_records(1, event__name="closecodes.session.refused")  # clients hear of it first
        demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(20) == 0
        records = [json.loads(line) for line in demo.log().splitlines()]
    [failure] = [record for record in records if record.get("closecodes.error.id") == ref]
    assert "in crash_after_accept\n" in failure["exception.stacktrace"]
    assert failure["http.route"] == "/crash-after-accept"
    [refusal] = [record for record in records if record.get("event.name") == "closecodes.session.refused"]
    assert refusal["closecodes.gate.limit"] == 1
    assert refusal["url.path"] == "/echo"
    assert not [record for record in records if record["level"] == "error" and record is not failure]


@pytest.mark.parametrize("server", SERVERS)
def test_open_page_does_not_keep_it_from_stopping(tmp_path, server):
    with running_demo(tmp_path, "--server", server) as demo, feed(demo, close_timeout=1) as told:
        assert told()
        demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(20) == 0


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
def test_demo_that_stops_tells_its_clients_to_come_back(tmp_path, server):
    with running_demo(tmp_path, "--server", server) as demo:
        with websockets.sync.client.connect(f"{demo.url}/echo", proxy=None, close_timeout=1) as websocket:
            demo.process.send_signal(signal.SIGINT)
            with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
                websocket.recv(timeout=10)
        assert closed.value.rcvd.code == 1012
        assert demo.process.wait(20) == 0
        assert not demo.records(level="error")


@pytest.mark.parametrize("server", SERVERS)
def test_port_that_is_taken_is_one_clear_line(server):
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
    ("missing", "server"),
    [
        ("starlette", "uvicorn"),
        ("uvicorn", "uvicorn"),
        ("websockets", "uvicorn"),
        ("hypercorn", "hypercorn"),
        ("granian", "granian"),
    ],
)
def test_demo_without_a_dependency_names_the_install_command(missing, server):
    """What is not installed is one line with the command that installs it."""
    run = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_module('demo_app', run_name='__main__')"
    status, output, errors = outcome("--server", server, command=("-c", run))
    assert (status, output) == (1, "")
    [line] = errors.splitlines()
    assert re.fullmatch(rf"{missing} is not installed: \S+ -m pip install --editable '\.\[demo\]'", line)


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (["--port", "99999999"], {}, "port 99999999"),
        (["--host", "192.0.2.1"], {}, "192.0.2.1"),
        ([], {"CLOSECODES_MAX_SESSIONS": "many"}, "max_sessions = 'many'"),
    ],
)
def test_demo_argument_unusable_is_told_without_a_stack_trace(options, environment, said):
    status, output, errors = outcome(*options, **environment)
    assert (status, output) == (1, "")
    assert said in errors
    assert "Traceback" not in errors
