"""The table of README.md: what clients see of each framework, bare and with its integration."""

import json
import math
import time

import pytest

from tests.integrations.peers import PATIENCE_S, SocketIO, WebSockets, control, end_of, staying, visit
from tests.support.programs import module
from tests.support.servers import ROOT

README = (ROOT / "asgi_closecodes/integrations/README.md").read_text()

FRAMEWORKS = {
    "Starlette": ("starlette", "starlette.both", WebSockets, "/crash/{name}"),
    "FastAPI": ("fastapi", "starlette.both_fastapi", WebSockets, "/crash/{name}"),
    "Django Channels": ("channels", "channels.both", WebSockets, None),
    "Django Channels, in threads": ("channels", "channels.both_sync", WebSockets, None),
    "Litestar": ("litestar", "litestar.both", WebSockets, "/crash/{name}"),
    "Quart": ("quart", "quart.both", WebSockets, "/crash/<name>"),
    "python-socketio": ("socketio", "socketio.both", SocketIO, None),
}
SCENARIOS = ("early", "crash", "busy", "asked")


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request):
    return request.param


@pytest.fixture(scope="module")
def kind(framework):
    return FRAMEWORKS[framework][2]


@pytest.fixture(scope="module")
def running(framework, application):
    name, app, _, _ = FRAMEWORKS[framework]
    module(name)
    return application(app)


def short(end):
    for detail, word in (("; ref=", " + ref"), ("; retry_after=", " + hint")):
        if detail in end:
            return end[:4] + word
    return end if end.startswith("HTTP") else end[:4]


def both(running, kind, scenario):
    bare, wrapped = visit(running, kind, scenario, bare=True), visit(running, kind, scenario)
    assert "secret" not in wrapped
    return f"{short(bare)} → **{short(wrapped)}**"


def ended_by(running, kind, what):
    with staying(running, kind, "echo") as websocket:
        control(running, what)
        return f"**{short(end_of(websocket))}**"


def second_of_key(running, kind):
    with staying(running, kind, "keyed"):
        return f"**{short(visit(running, kind, 'keyed'))}**"


def test_conformance_row_is_that_of_readme(running, framework, kind):
    cells = [both(running, kind, scenario) for scenario in SCENARIOS]
    cells.append(second_of_key(running, kind))
    cells += [ended_by(running, kind, what) for what in ("shed", "drain")]
    control(running, "resume")
    row = f"| {framework} | {' | '.join(cells)} |"
    assert row in README.splitlines()


@pytest.mark.parametrize("top", ["", "/bare"])
def test_conformance_normal_traffic_is_unchanged(running, kind, top):
    with staying(running, kind, "echo", top):
        pass


def test_conformance_crash_is_one_record(running, framework, kind):
    known = {record["closecodes.error.id"] for record in running.records(event__name="closecodes.session.exception")}
    ref = visit(running, kind, "crash").partition("ref=")[2]
    visit(running, kind, "early")  # its record comes after those of the first
    running.wait_for_records(len(known) + 2, event__name="closecodes.session.exception")
    records = [
        record
        for record in running.records(level="error")
        if record["logger"].startswith("asgi_closecodes") and record.get("closecodes.error.id") not in known
    ]
    assert len(records) == 2
    assert records[0]["closecodes.error.id"] == ref
    assert records[0]["exception.message"] == "secret"
    assert records[0].get("http.route") == FRAMEWORKS[framework][3]


@pytest.mark.parametrize("scenario", ["busy", "asked"])
def test_conformance_close_on_purpose_is_no_record(running, kind, scenario):
    """Before accept as after it, with the whole of its reason."""
    known = len(running.records(level="error"))
    reason = {"busy": "1013 try again later; retry_after=2.0; cause=db", "asked": "4001 as asked"}[scenario]
    assert visit(running, kind, f"early_{scenario}") == visit(running, kind, scenario) == reason
    assert visit(running, kind, "crash")[:4] == "1011"  # its record comes after those
    running.wait_for_records(known + 1, level="error")
    ours = [one for one in running.records(level="error")[known:] if one["logger"].startswith("asgi_closecodes")]
    assert len(ours) == 1


def test_conformance_nothing_leaks(running, kind):
    """Neither places nor tasks stay behind, however sessions end."""
    with staying(running, kind, "keyed"):
        assert state(running)["open"] == 1
    before = quiet(running)
    for scenario in kind.paths:
        if scenario not in kind.first:
            visit(running, kind, scenario)
    second_of_key(running, kind)
    for what in ("shed", "drain"):
        ended_by(running, kind, what)
    control(running, "resume")
    after = quiet(running, before["tasks"])
    assert [gate["usage"] for gate in after["gates"]] == [0, 0]
    assert after["tasks"] <= before["tasks"]


def state(running):
    return json.loads(control(running, "state"))


def quiet(running, tasks=math.inf):
    """Wait until no session is there, and so many tasks at most; return the state that it comes to."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        now = state(running)
        if (now["open"] + now["leaving"] == 0 and now["tasks"] <= tasks) or time.monotonic() > deadline:
            assert (now["open"], now["leaving"]) == (0, 0)
            return now
        time.sleep(0.02)
