"""A log of a hostile author: bounded memory, no traceback, nothing that drives a terminal."""

import gzip
import json
import re
import subprocess
import sys

import pytest

from asgi_closecodes.cli.logs import reader
from asgi_closecodes.cli.logs.follow import MAX_KEPT_BYTES, Recent
from asgi_closecodes.cli.logs.record import MAX_KEPT_LINE_BYTES, Record, compact
from tests.cli.command import COMMAND, invoke

REF = "D216BE3DZX4Y"
LONG = 3_900_000
MOST_RESIDENT = 200 * 1024
"""KiB."""

MOST_RESIDENT_WITH_LINES = 300 * 1024
"""KiB, where the last lines of a session are kept."""

LAUNCHER = """
import os, subprocess, sys
out, err, *command = sys.argv[1:]
process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=int(out), stderr=int(err))
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
os._exit(0)
"""
# Linux counts the memory of the parent as that of the child, until it runs a program of its own.

COMMANDS = [
    ["errors"],
    ["errors", "--json"],
    ["stalls"],
    ["stalls", "--json"],
    ["closes"],
    ["closes", "--json"],
    ["show", REF],
    ["show", REF, "--json", "-C", "100000"],
    ["show", "D2222222DZX4"],
    ["tail", "-n", "1000"],
    ["tail", "-n", "1000", "--json"],
]


def failure(number, function="f", **keys):
    return {
        "timestamp": f"2026-11-23T19:02:{number % 60:02}Z",
        "level": "error",
        "message": "failed",
        "event.name": "closecodes.session.exception",
        "closecodes.error.id": REF if number == 3 else f"E{number}",
        "closecodes.session.id": "one",
        "websocket.close.code": 1011,
        "exception.stacktrace": f'Traceback:\n  File "/app/{number}.py", line 1, in {function}\nKeyError: 1\n',
        **keys,
    }


def text(record):
    return json.dumps(record, ensure_ascii=False)


def wide(number):
    """Return a record whose every text is distinct, long, and of characters that take 4 bytes."""
    keys = ("closecodes.error.fingerprint", "http.route", "exception.type", "exception.message", "closecodes.gate.name")
    return text({**failure(number), **dict.fromkeys(keys, f"{number}" + "🐍" * 300)})


def hostile():
    """Return lines by the name of their file; they take 50 MB."""
    return {
        "function": [text(failure(number, "f" * LONG)) for number in range(2)] * 10,
        "wide": [text(failure(number, "\N{SNAKE}" + "f" * LONG)) for number in range(4)],
        "kinds": map(wide, range(3000)),
        "elements": [f'{{"level":"error","closecodes.session.id":"one","a":[{"[]," * (LONG // 3)}1]}}'] * 5,
        "quoted": ['"{"level":"error","a":[' + "[]," * (LONG // 3) + "1]}"] * 5,
        "unended": ['{"level":"error","a":"' + '\\"' * (LONG // 3) + "," * (LONG // 3)],
        "keys": ['{"level":"error",' + "".join(f'"{number}":{{"b":{{}}}},' for number in range(45_000)) + '"z":1}'] * 5,
        "lines": [json.dumps(failure(3, **{"exception.message": "\n" * 1_900_000}))] * 4,
        "escapes": ["\x1b[2J" * (LONG // 4), json.dumps(failure(3, message="\x1b[2J" * 400_000))],
        "odd": [
            '{"level":"error","a":' + "[" * 900 + "]" * 900 + "}",
            '{"level":"error","a":' + "[" * 3_000_000 + "}",
            '{"level":"error","x":' + "9" * 100_000 + "}",
            '{"level":"error","timestamp":' + "9" * 4000 + "}",
            '{"level":"error","timestamp":"' + "1" * LONG + '"}',
            '{"level":"error","message":"\\ud800\\u0000\\u001b[2J"}',
            '{"level":"error","exc_info":[' + '"l",' * 90_000 + '"l"]}',
            "  + Exception Group Traceback" + "\n  | " * 10_000,
        ],
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Packed: they take a few MB."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, lines in hostile().items():
        with gzip.open(folder / f"{name}.gz", "wt", compresslevel=1, encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    for number in range(14):
        (folder / f"{number}.log").write_text(text(failure(number, "f" * LONG)) + "\n")
    return [*map(str, folder.iterdir())]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_hostile_files_take_little_memory_and_do_no_harm(files, command, tmp_path):
    """Of 55 MB and more; measured from outside, of a process of its own."""
    output, errors = tmp_path / "output", tmp_path / "errors"
    with output.open("wb") as stdout, errors.open("wb") as stderr:
        launched = [sys.executable, "-c", LAUNCHER, stdout.fileno(), stderr.fileno(), COMMAND, "logs", *command, *files]
        told = subprocess.run([*map(str, launched)], pass_fds=(stdout.fileno(), stderr.fileno()), capture_output=True)
    status, resident = map(int, told.stdout.split())
    said = output.read_bytes() + errors.read_bytes()
    assert status in {0, 1}, errors.read_text()[-1000:]
    assert resident < (MOST_RESIDENT_WITH_LINES if "-C" in command else MOST_RESIDENT)
    assert b"Traceback (most recent call last)" not in errors.read_bytes()
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", said)


@pytest.mark.parametrize("command", [["errors"], ["errors", "--json"], ["show", REF], ["tail"]], ids=" ".join)
def test_cut_text_ends_with_an_ellipsis(tmp_path, command):
    log = tmp_path / "app.log"
    log.write_text(json.dumps(failure(3, "f" * LONG)) + "\n")
    output, _ = invoke("logs", *command, log)
    assert "f…" in output or "f\\u2026" in output
    assert len(output) < MAX_KEPT_LINE_BYTES


def test_long_error_counts_all_the_same(tmp_path):
    log = tmp_path / "app.log"
    log.write_text("".join(json.dumps(failure(number, "f" * LONG)) + "\n" for number in range(3)))
    output, _ = invoke("logs", "errors", log, "--json")
    assert json.loads(output)["count"] == 3


def test_text_of_many_commas_is_an_error_still(tmp_path):
    """What stands in a string costs nothing beside it."""
    log = tmp_path / "app.log"
    log.write_text(json.dumps(failure(3, **{"exception.message": 'a, \\"b, ' * 100_000})) + "\n")
    output, _ = invoke("logs", "errors", log, "--json")
    assert json.loads(output)["count"] == 1


def test_line_without_an_end_is_given_up(tmp_path, monkeypatch):
    """It may expand to more than anybody can wait for."""
    monkeypatch.setattr(reader, "MAX_SKIPPED_BYTES", 2**23)
    log = tmp_path / "bomb.gz"
    log.write_bytes(gzip.compress(b"x" * 2**25))
    _, errors = invoke("logs", "errors", log, status=2)
    assert "a line is longer than 8 MiB" in errors


@pytest.mark.parametrize("value", ["f" * LONG, ["f"] * 90_000, {str(n): "f" * 500 for n in range(1000)}, 10**4000])
def test_compact_line_is_a_record_still(value):
    line = json.dumps({"message": "said", "a": value, "b": "f" * MAX_KEPT_LINE_BYTES}).encode()
    assert len(kept := compact(line)) <= 2 * MAX_KEPT_LINE_BYTES
    assert Record.parse(kept).message in {"said", "…"}


def test_short_line_is_kept_as_it_is():
    line = json.dumps(failure(3)).encode()
    assert compact(line) is line


def test_last_lines_are_bounded_in_bytes():
    recent = Recent(10**6)
    for _ in range(2000):
        recent.append(b"x" * MAX_KEPT_LINE_BYTES)
    assert sum(map(len, recent.kept)) <= MAX_KEPT_BYTES


@pytest.mark.parametrize("command", [["errors"], ["closes"], ["show", REF], ["tail", "--json"]], ids=" ".join)
def test_log_that_is_no_json_says_how_to_write_one(tmp_path, command):
    log = tmp_path / "app.log"
    log.write_text("INFO:     127.0.0.1:5 - connection open\n")
    _, errors = invoke("logs", *command, log, status=1)
    assert "none of them JSON" in errors
    assert "configure_logging('json')" in errors
    assert "--log-config" in errors
