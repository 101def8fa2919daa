"""What the command finds, on real servers; and how it searches, on imagined ones."""

import asyncio
import errno
import os
import re
import resource
import signal
import subprocess
import sys

import httpx
import pytest

from asgi_closecodes import Settings
from asgi_closecodes.cli.capacity.connection import Refusal, Target
from asgi_closecodes.cli.capacity.load import Held, SlowOpening
from asgi_closecodes.cli.capacity.measure import End, Plan, Search
from asgi_closecodes.cli.capacity.options import duration, url
from tests.cli.command import invoke, run, start
from tests.support.client_rule import REASONS
from tests.support.peers import wait_until
from tests.support.servers import serve

from .app import APP, FRAGILE

QUICK = ("--every", "50ms", "--hold", "200ms", "--p99", "30s")


def seen(server):
    return httpx.get(server.url.replace("ws", "http", 1) + "/state", trust_env=False, verify=False).json()


def settings(output):
    return dict(re.findall(r"^CLOSECODES_(\w+)=(.*)$", output, re.MULTILINE))


# On real servers


def test_capacity_of_a_server_becomes_settings(server):
    busy = "--hold", "1s"  # for less, twelve sessions take so little that the server seems idle
    output, errors = invoke(
        "capacity", server.url + "/fragile", *QUICK, *busy, "--message", "hello", "--pid", server.process.pid
    )
    assert errors == ""
    assert f"The server held {FRAGILE} sessions, each saying something every 50ms, with a p99 of at most 30s." in output
    found = settings(output)
    assert found["MAX_SESSIONS"] == str(int(0.8 * FRAGILE))
    assert found["MAX_LOOP_LAG"] == "30"
    assert found["MAX_MEMORY"] == "80%"
    Settings(**{name.lower(): value for name, value in found.items()})
    rows = [line.split() for line in output.splitlines() if re.match(r" *\d+ ", line)]
    assert next(int(row[0]) for row in rows) == 10
    assert re.fullmatch(r"-?\d+\.\d", rows[0][2])
    assert "close 1011" in output
    assert wait_until(lambda: seen(server)["open"] == 0)


def test_sessions_speak_as_browsers_do(server):
    invoke("capacity", server.url, *QUICK, "--most", "3", "--message", "hello, hello, hello")
    assert seen(server)["extensions"] == "permessage-deflate; client_max_window_bits"
    assert seen(server)["texts"] == ["hello, hello, hello"] * 3


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"CLOSECODES_MAX_SESSIONS": "7"}, r"First refused at 7: close 1013 \(.*; cause=full\): max_sessions\."),
        (
            {"CLOSECODES_MAX_SESSIONS_PER_CLIENT": "7"},
            r"First refused at 7: close 1013 \(.*; cause=client\): max_sessions_per_client, or a limit by key: all sessions",
        ),
        (
            {"CLOSECODES_MAX_SESSIONS": "7", "CLOSECODES_REJECT_WITH": "http"},
            r"First refused at 7: HTTP 503 \(.*; cause=full\): max_sessions\.",
        ),
    ],
)
def test_limit_that_is_set_is_told_and_nothing_to_set(limited, env, said):
    output, _ = invoke("capacity", limited(**env).url, *QUICK, status=1)
    assert "The server held 7 sessions" in output
    assert re.search(said, output)
    assert "lift it, and measure again" in output
    assert not settings(output)


def test_server_that_admits_nobody_is_told(limited):
    output, errors = invoke("capacity", limited(CLOSECODES_MAX_SESSIONS="0").url, status=2)
    assert output == ""
    assert re.fullmatch(
        r"asgi-closecodes: the server refuses the first session: close 1013 \(.*; cause=full\): max_sessions\n", errors
    )


def test_proxy_that_gives_itself_away_is_named(server):
    assert (
        "A proxy answered: one with a Via header."
        in invoke("capacity", server.url + "/proxied", *QUICK, "--most", "1", status=None)[0]
    )
    assert "A proxy answered" not in invoke("capacity", server.url, *QUICK, "--most", "1", status=None)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_prints_what_is_known(server, number):
    before = seen(server)["most"]
    with start("capacity", server.url, *QUICK, "--message", "hello") as process:
        assert wait_until(lambda: seen(server)["open"] > 20), before
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == b""
    assert b"It was interrupted: the server may hold more." in output
    assert b"CLOSECODES_MAX_SESSIONS=" in output
    assert wait_until(lambda: seen(server)["open"] == 0)


def test_few_files_are_the_command_s_own_limit(server):
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    output, _ = run("capacity", server.url, *QUICK, preexec_fn=limit)
    assert "The server may hold more, but this command may open no more files" in output
    assert settings(output)["MAX_SESSIONS"]


def test_few_files_of_the_server_are_told(tmp_path):
    code = "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)); "
    (tmp_path / "few_files.py").write_text(code + "runpy.run_module('uvicorn', run_name='__main__', alter_sys=True)")
    app = "few_files {app} {uvicorn_bind} --ws websockets-sansio"
    with serve(app, APP, tmp_path, env={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}) as server:
        output = invoke("capacity", server.url, *QUICK, "--pid", server.process.pid)[0]
    assert "the server may open no more than 60 files (ulimit -n)" in output
    assert 30 <= int(re.search(r"held (\d+) session", output)[1]) < 60


def test_ctrl_c_in_the_first_step_says_so(server):
    before = seen(server)["most"]
    with start("capacity", server.url, "--every", "60s", "--message", "hello") as process:
        assert wait_until(lambda: seen(server)["open"] > 5), before
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")
    assert b"There is no result" in output


def test_slow_talker_is_looked_at_for_as_long():
    assert search(ImaginedLoad(lambda _: 0.1), most=10, every=60.0).held == 10
    assert ImaginedLoad.held_for == 60.0


def test_process_that_did_nothing_is_told(server):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as idle:
        output, _ = invoke("capacity", server.url, *QUICK, "--most", "2", "--pid", idle.pid, status=1)
        idle.communicate()
    assert "The process of --pid was idle meanwhile: is it the server's?" in output


# The search


class ImaginedLoad:
    """Sessions whose p99 is a function of their number."""

    def __init__(self, p99, error_at=None, late=0.0):
        self.sessions = {}
        self.refusal = self.error = None
        self.at_once = 50
        self._p99, self._error_at, self._late = p99, error_at or (10**9, None), late

    def forget(self):
        self.refusal = self.error = None

    def talk(self):
        pass

    async def stop(self):
        pass

    async def open(self, count):
        for _ in range(count):
            if len(self.sessions) == self._error_at[0]:
                problem = self._error_at[1]
                self.refusal, self.error = (problem, None) if isinstance(problem, Refusal) else (None, problem)
                return
            self.sessions[object()] = None

    def close(self, count):
        for _ in range(count):
            self.sessions.popitem()

    async def settle(self, *_):
        pass

    async def hold(self, seconds, _limit):
        ImaginedLoad.held_for = seconds
        return Held([self._p99(len(self.sessions))] * 10, self._late, 0.0)


def search(load, most=None, every=1.0, server=None):
    done = Search(Target(url("ws://127.0.0.1/")), None, Plan(0.25, every, 1.0, most), server, lambda _: None)

    async def probed():
        return load

    done._probed = probed
    asyncio.run(done.run())
    return done.result


@pytest.mark.parametrize("capacity", [1, 2, 9, 10, 11, 19, 20, 300, 777, 12345])
def test_search_ends_near_the_capacity(capacity):
    result = search(ImaginedLoad(lambda count: 0.01 if count <= capacity else 1.0))
    assert result.ends_by is End.SERVER
    assert capacity * 0.93 <= result.held <= capacity


def test_server_that_holds_nobody_has_a_capacity_of_none():
    result = search(ImaginedLoad(lambda _: 1.0))
    assert (result.held, result.ends_by) == (0, End.SERVER)


def test_bad_measurement_is_repeated_once():
    looks = iter([1.0, 0.1, *[0.1] * 10])
    assert search(ImaginedLoad(lambda _: next(looks)), most=20).held == 20


@pytest.mark.parametrize(("reason", "cause"), [(reason, cause) for reason, _, cause, _ in REASONS])
def test_cause_of_a_refusal_is_read_as_in_a_page(reason, cause):
    assert Refusal(1013, reason=reason).cause == cause


@pytest.mark.parametrize(
    ("problem", "end"),
    [
        (ConnectionRefusedError(), End.GONE),
        (OSError(errno.EMFILE, ""), End.FILES),
        (OSError(errno.EADDRNOTAVAIL, ""), End.PORTS),
        (Refusal(1013, reason="try again later; cause=full"), End.LIMIT),
        (Refusal(1013, reason="come later"), End.LIMIT),
        (Refusal(status=503), End.LIMIT),
        (Refusal(1013, reason="try again later; retry_after=2.0; cause=lag"), End.SERVER),
        (Refusal(1006), End.SERVER),
        (Refusal(1011, reason="internal error; ref=ABC"), End.SERVER),
        (ConnectionResetError(), End.SERVER),
        (TimeoutError(), End.SERVER),
        (SlowOpening(), End.SERVER),
    ],
)
def test_problem_ends_the_search_by_its_kind(problem, end):
    result = search(ImaginedLoad(lambda _: 0.1, error_at=(50, problem)))
    assert result.ends_by is end
    assert result.held in {End.SERVER: range(46, 51), End.GONE: [40]}.get(end, [50])


class FewFiles:
    """A server that may open no more files."""

    def begin(self):
        pass

    def grown(self):
        return None

    def lacks_files(self):
        return 60

    def workers(self):
        return 1


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (Refusal(1006), True),
        (Refusal(status=500), True),
        (Refusal(1013, reason="try again later; retry_after=2.0; cause=lag"), False),
    ],
)
def test_server_without_files_may_fail_in_any_way(problem, told):
    steps = search(ImaginedLoad(lambda _: 0.1, error_at=(50, problem)), server=FewFiles()).steps
    problems = {step.problem for step in steps if step.problem}
    assert ("the server may open no more than 60 files (ulimit -n)" in problems) is told


def test_slow_handshakes_are_made_fewer_at_once():
    class Slow(ImaginedLoad):
        async def open(self, count):
            if self.at_once > 10:
                self.error = TimeoutError()
            else:
                await super().open(count)

    assert search(Slow(lambda count: 0.01 if count <= 300 else 1.0)).held == pytest.approx(300, rel=0.07)


def test_slow_command_is_not_taken_for_a_slow_server():
    result = search(ImaginedLoad(lambda _: 1.0, late=0.2))
    assert result.ends_by is End.COMMAND


def test_most_that_was_asked_for_ends_the_search():
    result = search(ImaginedLoad(lambda _: 0.1), most=33)
    assert (result.held, result.ends_by) == (33, End.MOST)


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "250ms"), (0.0014, "1.4ms"), (1.0, "1s"), (12.34, "12.3s")])
def test_duration_is_printed_as_it_is_read(seconds, text):
    assert duration(seconds) == text
