"""The comparison refuses figures that say nothing."""

import contextlib
import subprocess
from types import SimpleNamespace

import pytest

from asgi_closecodes.cli.capacity.measure import End, Plan, Result, Step
from asgi_closecodes.cli.capacity.report import _sentences
from tests.live.capacity import __main__ as comparison

PLAN = Plan(p99=0.25, every=1.0, hold=5.0, most=None)


@pytest.fixture
def saying(monkeypatch):
    """Have the command say what it would of a search that ended so."""

    def say(ends_by, returncode=0):
        steps = [Step(40, 0.1, 2048.0, 300.0, False, "")]
        text = "\n".join([" 40   100ms   2.0 KiB   300 ", *_sentences(Result(steps, held=40, ends_by=ends_by), PLAN)])
        done = subprocess.CompletedProcess([], returncode, text, "")
        monkeypatch.setattr(comparison.subprocess, "run", lambda *arguments, **options: done)

    server = SimpleNamespace(url="ws://here", process=SimpleNamespace(pid=1))
    monkeypatch.setattr(comparison, "serve", lambda *arguments: contextlib.nullcontext(server))
    return say


def test_command_found_limit_gives_figures(saying):
    saying(End.SERVER)
    assert comparison.command("app", 1.0, 5.0) == (40, 2048.0, 300.0)


@pytest.mark.parametrize("end", [one for one in End if one is not End.SERVER])
def test_command_ended_otherwise_is_refused_with_reason(saying, end):
    saying(end)
    with pytest.raises(comparison.Refused, match=r"did not find the server's limit: T\w+"):
        comparison.command("app", 1.0, 5.0)


def test_command_failed_is_refused(saying):
    saying(End.SERVER, returncode=2)
    with pytest.raises(comparison.Refused, match="status 2"):
        comparison.command("app", 1.0, 5.0)


def test_busy_machine_is_refused(monkeypatch):
    now = iter([(0.0, 0.0), (10.0, 5.0)])
    monkeypatch.setattr(comparison.Meanwhile, "_now", staticmethod(lambda: next(now)))
    with pytest.raises(comparison.Refused, match=r"other processes took 0\.50 cores"):
        comparison.Meanwhile().check()
