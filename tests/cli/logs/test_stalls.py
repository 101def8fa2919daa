"""``asgi-closecodes logs stalls``: what blocked the event loop."""

import dataclasses
import json

import pytest

from asgi_closecodes import events
from tests.cli.command import invoke, run_json
from tests.support.every_event import FACTS
from tests.support.log_lines import FORMATTERS, failure, logged

STACK = """Stack (most recent call last):
  File "/app/.venv/lib/python3.12/site-packages/starlette/routing.py", line 82, in app
    await func(session)
  File "/app/rooms.py", line 56, in join
    time.sleep(1)
"""


def stall(duration=1.0, fingerprint="0123456789ab", *, route="/rooms/{id}", line=56):
    session = dataclasses.replace(FACTS, route=route)
    return events.LoopStalled(duration, fingerprint, 3, STACK, "/app/rooms.py", line, "Room.join", session)


@pytest.fixture
def write(tmp_path):
    def write(*happened, formatter="ours"):
        log = tmp_path / "app.log"
        log.write_bytes(b"".join(line + b"\n" for line in logged(*happened, formatter=FORMATTERS[formatter])))
        return log

    return write


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_stalls_are_grouped_with_the_line_of_yours(write, formatter):
    other = events.LoopStalled(0.5, "unknown", 1)
    log = write(stall(), stall(2.5, line=57), other, failure(), formatter=formatter)
    found = run_json("logs", "stalls", log)
    assert found["count"] == 3
    first, second = found["stalls"]
    assert (first["count"], first["total_seconds"], first["longest_seconds"]) == (2, 3.5, 2.5)
    assert first["frame"] == {"file": "/app/rooms.py", "line": 57, "function": "Room.join"}
    assert (first["fingerprint"], first["routes"]) == ("0123456789ab", {"/rooms/{id}": 2})
    assert first["session"] == FACTS.id
    assert (second["fingerprint"], second["frame"], second["total_seconds"]) == ("unknown", None, 0.5)
    assert "a thread held the GIL" in second["message"]


def test_stalls_that_took_longest_come_first_as_text(write):
    log = write(*[stall(0.1, "aaaaaaaaaaaa", route="/often")] * 5, stall(9))
    output, _ = invoke("logs", "stalls", log)
    assert output.startswith("6 stalls, ")
    assert output.index("9.00 s in all, 9.00 s the longest") < output.index("0.50 s in all, 0.10 s the longest")
    assert "1  /app/rooms.py:56 in Room.join\n" in output
    assert "route /often\n" in output
    assert "fingerprint aaaaaaaaaaaa" in output


def test_suppressed_stalls_are_counted(write):
    log = write(*[stall(0.1)] * 30)
    [kind] = run_json("logs", "stalls", log)["stalls"]
    assert (kind["count"], kind["written"], kind["suppressed"]) == (30, 10, 20)
    assert kind["total_seconds"] == 1.0
    assert kind["frame"]["line"] == 56
    assert "20 of them suppressed" in invoke("logs", "stalls", log)[0]


def test_stalls_of_another_time_are_left_out(write):
    log = write(stall())
    assert run_json("logs", "stalls", log, "--since", "1h")["count"] == 1
    _, errors = invoke("logs", "stalls", log, "--until", "2020-01-01", status=1)
    assert "no stalls" in errors


def test_stalls_are_no_errors(write):
    assert run_json("logs", "errors", write(stall(), failure()))["count"] == 1


def test_tail_shows_where_the_loop_stood(write):
    output, _ = invoke("logs", "tail", write(stall()))
    assert "stood still for 1.00 s at /app/rooms.py:56 in Room.join of /rooms/{id}" in output
    assert "    time.sleep(1)\n" in output


@pytest.mark.parametrize("bad", ["x", None, -1, 1e300, True, [1], {"a": 1}])
def test_nonsense_in_a_stall_is_none(write, bad):
    log = write(stall())
    text = log.read_text()
    keys = {"closecodes.stall.duration": "1.0", "code.line.number": "56", "code.file.path": '"/app/rooms.py"'}
    for key, value in keys.items():
        assert f'"{key}": {value}' in text
        text = text.replace(f'"{key}": {value}', f'"{key}": {json.dumps(bad)}')
    log.write_text(text)
    assert run_json("logs", "stalls", log)["count"] == 1
    invoke("logs", "stalls", log)
