"""Drains that wait for calls: at SIGTERM, and from the preStop of the recipe for Kubernetes."""

import re
import signal
import subprocess

import httpx
import pytest
import yaml

from tests.support.peers import Raw, connect
from tests.support.programs import program
from tests.support.servers import ROOT, serve

from .at_once import at_once, serve_all

APP = "tests.live.servers.calls:app"
DRAINED = "1012 service restart; retry_after=1.0; cause=drain"


def opened(running, holding):
    idle, call = (holding.enter_context(Raw(running, path)) for path in ("/idle", "/call"))
    assert (idle.answer(), call.answer(), call.frame()) == (101, 101, (1, b"ringing"))
    return idle, call


def closed(peer):
    seen = peer.close_frame()
    peer.send(8, seen.code.to_bytes(2))
    return str(seen)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with serve_all(APP, tmp_path_factory.mktemp("calls")) as servers:
        yield servers


def test_sigterm_waits_for_a_call(tmp_path, holding):
    env = {"CLOSECODES_DRAIN_ON_SIGTERM": "true"}
    with serve("uvicorn-sansio", APP, tmp_path, env=env) as running:
        idle, call = opened(running, holding)
        running.process.send_signal(signal.SIGTERM)
        assert closed(idle) == DRAINED
        assert str(connect(running, "/idle")) == DRAINED, "new ones are refused at once"
        call.send(1, b"bye")
        assert (call.frame(), closed(call)) == ((1, b"bye"), DRAINED)
        running.process.wait(15)
        [record] = running.records(event__name="closecodes.drain.started")
        assert record["closecodes.drain.patience"] == 60


@at_once
def test_kubernetes_pre_stop_waits_for_a_call(server, setup, holding):
    """Its command is run as the kubelet runs it: the signal comes when it has ended."""
    readme = (ROOT / "asgi_closecodes/guard/README.md").read_text()
    deployment, hook = map(
        yaml.safe_load, re.findall(r"^```yaml\n((?:apiVersion|lifecycle).*?)^```", readme, re.MULTILINE | re.DOTALL)
    )
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    env = {one["name"]: one["value"] for one in container["env"]}
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    patience, window = float(env["CLOSECODES_DRAIN_PATIENCE"]), float(env["CLOSECODES_DRAIN_WINDOW"])
    assert pod["terminationGracePeriodSeconds"] > before + patience + window
    command = hook["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "curl"
    idle, call = opened(server, holding)
    url = server.url.replace("ws", "http", 1)
    arguments = [one.replace("http://127.0.0.1:8000", url) for one in command]
    pre_stop = subprocess.Popen([program("curl"), *arguments[1:]])
    try:
        drained = "4012" if setup == "daphne" else DRAINED
        assert closed(idle) == drained
        assert httpx.get(f"{url}/ready", trust_env=False, verify=False).status_code == 503
        with pytest.raises(subprocess.TimeoutExpired):
            pre_stop.wait(0.5)
        call.send(1, b"bye")
        assert (call.frame(), closed(call)) == ((1, b"bye"), drained)
        assert pre_stop.wait(15) == 0
    finally:
        pre_stop.kill()
