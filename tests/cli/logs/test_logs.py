"""``asgi-closecodes logs`` as people use it, on the logs that they have."""

import contextlib
import gzip
import io
import json
import os
import pty
import signal
import subprocess
import threading
import unicodedata
from importlib.resources import files

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_closecodes.cli.logs import LNAV_FORMAT
from asgi_closecodes.cli.output import progress
from asgi_closecodes.codes import CloseCode
from asgi_closecodes.error_identity import new_error_id
from tests.cli.command import ENVIRONMENT, Output, invoke, run, run_json, start
from tests.support.log_lines import FORMATTERS, failed, failure, logged
from tests.support.peers import connect
from tests.support.programs import program
from tests.support.servers import serve

REF = "D216BE3DZX4Y"
TRACE = """Traceback (most recent call last):
  File "/app/.venv/lib/python3.12/site-packages/starlette/routing.py", line 82, in app
    await func(session)
  File "/app/rooms.py", line 56, in join
    room.members[key]
KeyError: 'x'
"""


def record(at, message="said", level="info", **keys):
    return {"timestamp": f"2026-11-23T{at}Z", "level": level, "logger": "app", "message": message, **keys}


def the_error(at="19:02:19.5", **keys):
    return record(
        at,
        f"KeyError in the WebSocket handler of /rooms/{{id}}; close code 1011; ref={REF}",
        "error",
        **{
            "event.name": "closecodes.session.exception",
            "closecodes.error.id": REF,
            "closecodes.error.fingerprint": "64afc36832b9",
            "closecodes.error.phase": "open",
            "closecodes.error.suppressed": 0,
            "closecodes.session.id": "e368c97eaace",
            "closecodes.session.duration": 1.5,
            "closecodes.session.messages.received": 1,
            "closecodes.session.messages.sent": 0,
            "http.route": "/rooms/{id}",
            "websocket.close.code": 1011,
            "websocket.close.reason": f"internal error; ref={REF}",
            "websocket.close.sent": True,
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "exception.type": "KeyError",
            "exception.message": "'x'",
            "exception.stacktrace": TRACE,
            **keys,
        },
    )


def lines_of(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def log(tmp_path):
    """The log of a session that failed, and of others."""
    session = {"closecodes.session.id": "e368c97eaace"}
    file = tmp_path / "app.log"
    file.write_text(
        lines_of(
            record("19:02:17", "opened /rooms/{id}", "debug", **session),
            record("19:02:18", "somebody else's line", **{"closecodes.session.id": "000000000000"}),
            record("19:02:18", f"nobody's line, that mentions ref={REF} and session e368c97eaace"),
            record("19:02:19", "asks the store", trace_id="0af7651916cd43dd8448eb211c80319c"),
            the_error(),
            record("19:02:20", "closed /rooms/{id} by the middleware; close code 1011", "debug", **session),
            record("19:02:21", "nobody's line"),
        )
    )
    return file


# show


@pytest.mark.parametrize("ref", [REF, REF.lower(), "d2l6be3dzx4y", f"internal error; ref={REF}", f" {REF} "])
def test_show_ref_of_a_client_finds_the_error_and_its_session(log, ref):
    output, errors = invoke("logs", "show", ref, log)
    assert errors == ""
    assert all("    " + line in output for line in TRACE.splitlines())
    for fact in ("/rooms/{id}", "e368c97eaace", f"1011 internal error; ref={REF}", "2026-11-23 19:02:19.500"):
        assert fact in output
    places = [output.index(text) for text in ("opened", "asks the store", "> 2026-11-23", "closed /rooms")]
    assert places == sorted(places)
    assert "line" not in output.split("3 other lines")[0].splitlines()[-1]
    assert "somebody else" not in output
    assert "nobody" not in output


def test_show_length_of_the_session_can_be_chosen(log):
    output, _ = invoke("logs", "show", REF, log, "-C", 1)
    assert "2 other lines of this session, and 1 before them" in output
    assert "opened" not in output
    assert "this session" not in invoke("logs", "show", REF, log, "--context", 0)[0]


def test_error_as_json_is_as_it_was_written(log):
    found = run_json("logs", "show", REF, log)
    assert found["error"] == the_error()
    assert [line["timestamp"][11:19] for line in found["session"]] == ["19:02:17", "19:02:19", "19:02:19", "19:02:20"]


def test_files_globs_gzip_and_pipes_are_one_log(log, tmp_path):
    (tmp_path / "app.log.1.gz").write_bytes(gzip.compress(log.read_bytes()))
    everything = run_json("logs", "show", REF, log)
    assert run_json("logs", "show", REF, tmp_path / "app.log.*") == everything
    assert run_json("logs", "show", REF, text=log.read_text()) == everything
    assert run_json("logs", "show", REF, "-", text=gzip.compress(log.read_bytes())) == everything
    older, newer = log.read_text().splitlines(keepends=True)[:4], log.read_text().splitlines(keepends=True)[4:]
    log.write_text("".join(newer))
    log.with_suffix(".log.1").write_text("".join(older))
    assert run_json("logs", "show", REF, log, log.with_suffix(".log.1")) == everything


def test_prefix_as_of_docker_compose_is_passed_over(log):
    text = "".join(f"web-1  | {line}\n" for line in log.read_text().splitlines())
    assert run_json("logs", "show", REF, text=text)["error"] == the_error()
    assert run_json("logs", "errors", text=text)["count"] == 1
    assert "web-1  | 2026-11-23 19:02:21" in invoke("logs", "tail", text=text)[0]


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_other_formatters_are_read(tmp_path, formatter):
    log = tmp_path / "app.log"
    log.write_bytes(b"".join(line + b"\n" for line in logged(*[failed()] * 30, formatter=FORMATTERS[formatter])))
    output, _ = invoke("logs", "show", "ABCDEFGHJKMN", log)
    assert "LookupError" in output
    assert "in join\n" in output
    errors = run_json("logs", "errors", log)
    assert errors["count"] == 30
    assert errors["errors"][0]["frame"]["function"] == "join"
    assert run_json("logs", "closes", log)["closes"][0]["count"] == 30
    assert "LookupError" in invoke("logs", "tail", log)[0]


def test_error_that_was_only_counted_is_explained(tmp_path):
    log = tmp_path / "app.log"
    ref = new_error_id()
    log.write_bytes(b"".join(line + b"\n" for line in logged(*[failure()] * 30)))
    output, errors = invoke("logs", "show", ref, log, status=1)
    assert output == ""
    assert f"no error {ref} in {log} (11 lines)" in errors
    assert "that error happened at" in errors
    assert "it may be one of 20 suppressed errors" in errors


def test_log_that_is_text_is_shown_as_it_is():
    before, after = "INFO: before\n", "INFO: after\nKeyError: not ours\n"
    text = f"ERROR KeyError in the WebSocket handler of /x; ref={REF}\n{TRACE}"
    again = f"\nDuring handling of the above exception, another exception occurred:\n\n{TRACE}"
    assert invoke("logs", "show", REF, text=before + text + again + after)[0] == text + again
    assert invoke("logs", "show", REF, text=before + text + after)[0] == text


# errors


def test_errors_are_grouped_with_those_that_were_only_counted(tmp_path, log):
    more = [the_error("19:10:00", **{"closecodes.error.suppressed": 7, "http.route": "/lobby"})]
    more.append(
        record(
            "19:10:30",
            "suppressed 5 more like this: KeyError in the WebSocket handler of /rooms/{id}",
            "error",
            **{
                "event.name": "closecodes.errors.suppressed",
                "closecodes.suppressed.event": "closecodes.session.exception",
                "closecodes.error.fingerprint": "64afc36832b9",
                "closecodes.error.suppressed": 5,
            },
        )
    )
    more.append(record("19:11:00", "the disk is full", "critical"))
    log.write_text(log.read_text() + lines_of(*more))
    output, _ = invoke("logs", "errors", log)
    head, frame = output.splitlines()[0], output.splitlines()[3]
    assert head == ("15 errors (3 written, 12 suppressed), 2026-11-23 19:02:19 to 19:11:00; a column is 15 s")
    assert frame.strip() == "/app/rooms.py:56 in join"
    assert "14  KeyError: 'x'" in output
    assert "route /lobby and 1 other\n" in output
    assert "2026-11-23 19:02:19 to 19:10:30, 12 of them suppressed" in output
    assert f"ref {REF}  fingerprint 64afc36832b9" in output
    assert " 1  the disk is full" in output
    found = run_json("logs", "errors", log)
    assert (found["count"], found["written"], found["suppressed"]) == (15, 3, 12)
    kind = found["errors"][0]
    assert (kind["first"], kind["last"]) == ("2026-11-23T19:02:19.500000Z", "2026-11-23T19:10:30.000000Z")
    assert kind["frame"] == {"file": "/app/rooms.py", "line": 56, "function": "join"}
    assert kind["routes"] == {"/rooms/{id}": 1, "/lobby": 8}
    assert sum(kind["over_time"]) == 14


def test_stretch_of_time_can_be_chosen(log):
    log.write_text(log.read_text() + lines_of(the_error("20:00:00"), {**the_error(), "timestamp": None}))
    left_out = "1 record without a time skipped"
    assert run_json("logs", "errors", log)["count"] == 3
    output, errors = invoke("logs", "errors", log, "--json", "--since", "2026-11-23T19:30Z")
    assert json.loads(output)["count"] == 1
    assert left_out in errors
    assert run_json("logs", "errors", log, "--until", "2026-11-23T19:30")["count"] == 1
    assert run_json("logs", "closes", log, "--since", "2026-11-23", "--until", "2026-11-24")["count"] == 2
    _, errors = invoke("logs", "errors", log, "--until", "2026-11-22", status=1)
    assert "no errors in that period in" in errors
    invoke("logs", "errors", log, "--since", "5000w", "--until", "0s")


@pytest.mark.parametrize("when", ["soon", "", "1", "1x", "h", "25:00", "99999999999w", "2026-13-01"])
def test_time_that_is_none_is_a_usage_error(log, when):
    _, errors = invoke("logs", "errors", log, "--since", when, status=2)
    assert f"; not {when!r}" in errors


# closes


def test_closes_are_counted_by_code_and_refusals_by_cause(log):
    refused = {
        "event.name": "closecodes.session.refused",
        "closecodes.gate.name": "max_sessions",
        "closecodes.gate.cause": "full",
        "closecodes.refusal.mode": "close",
        "closecodes.refusal.suppressed": 4,
        "websocket.close.code": 1013,
    }
    shadowed = {**refused, "closecodes.refusal.mode": "shadow", "websocket.close.code": None}
    log.write_text(
        log.read_text() + lines_of(record("19:03:00", level="warning", **refused), record("19:03:00", **shadowed))
    )
    output, _ = invoke("logs", "closes", log)
    lines = [line.split() for line in output.splitlines()]
    assert lines[0][:2] == ["6", "closes"]
    assert [line for line in lines if line[:2] == ["1011", "1"]]
    assert [line for line in lines if line[:2] == ["1013", "5"]]
    assert [line[-1] for line in lines if line[:3] == ["full", "max_sessions", "5"]] == ["refused", "(shadow)"]
    assert "This log has no sessions without problems" in output
    append(
        log, lines_of(record("19:04:00", **{"event.name": "closecodes.session.closed", "websocket.close.code": 1000}))
    )
    assert "sessions without problems" not in invoke("logs", "closes", log)[0]
    found = run_json("logs", "closes", log)
    assert {close["code"]: close["count"] for close in found["closes"]} == {1011: 1, 1013: 5, 1000: 1}
    assert {refusal["outcome"]: refusal["count"] for refusal in found["refusals"]} == {"refused": 5, "shadow": 5}


def test_closes_of_clients_are_told_apart(log):
    """A client's own 1011 is no failure of the server."""
    closed = {"event.name": "closecodes.session.closed", "websocket.close.code": 1011}
    by = ("client", "client", "middleware")
    log.write_text(lines_of(*(record("19:03:00", **closed, **{"closecodes.session.closed_by": one}) for one in by)))
    [close] = run_json("logs", "closes", log)["closes"]
    assert (close["code"], close["count"], close["by_client"]) == (1011, 3, 2)
    lines = [line.split() for line in invoke("logs", "closes", log)[0].splitlines()]
    assert [line[:4] for line in lines if line[:1] == ["code"]] == [["code", "closes", "by", "clients"]]
    assert [line[:3] for line in lines if line[:1] == ["1011"]] == [["1011", "3", "2"]]


@pytest.mark.parametrize("is_complete", [False, True])
def test_closes_counts_too_many_messages_once(log, is_complete):
    """Such a session was admitted: where all are logged, it has a record of its end too."""
    session = {"closecodes.session.id": "186655f0351b", "process.pid": 7}
    ended = {**session, "event.name": "closecodes.session.closed", "websocket.close.code": 1008}
    refused = {
        **session,
        "event.name": "closecodes.session.refused",
        "closecodes.gate.name": "messages",
        "closecodes.gate.cause": "messages",
        "closecodes.refusal.mode": "close",
        "websocket.close.code": 1008,
    }
    opened = {**session, "event.name": "closecodes.session.opened"}
    log.write_text(lines_of(*(record("19:04:00", **one) for one in [opened, refused, ended][not is_complete :])))
    found = run_json("logs", "closes", log)
    assert [(close["code"], close["count"]) for close in found["closes"]] == [(1008, 1)]
    assert [(one["cause"], one["gate"], one["count"]) for one in found["refusals"]] == [("messages", "messages", 1)]


@pytest.mark.parametrize("code", [CloseCode.UNAUTHORIZED, CloseCode.FORBIDDEN, CloseCode.TIMEOUT])
def test_closes_with_iana_code_prints_its_meaning(log, code):
    append(
        log, lines_of(record("19:04:00", **{"event.name": "closecodes.session.closed", "websocket.close.code": code}))
    )
    lines = [line.split(maxsplit=4) for line in invoke("logs", "closes", log)[0].splitlines()]
    assert [line[-1] for line in lines if line[:2] == [str(int(code)), "1"]] == [code.meaning]


# tail


def test_last_lines_are_for_people(log):
    log.write_text(log.read_text() + "some text with a \x1b[31mcolour\x1b[0m\n" + '{"half')
    output, _ = invoke("logs", "tail", log, "-n", 4)
    assert output.splitlines() == [
        "2026-11-23 19:02:20.000 DEBUG    closed /rooms/{id} by the middleware; close code 1011  session=e368c97eaace",
        "2026-11-23 19:02:21.000 INFO     nobody's line",
        "some text with a colour",
        '{"half',
    ]
    assert TRACE.splitlines()[-1] in invoke("logs", "tail", log)[0]
    assert len(invoke("logs", "tail", log, "--json")[0].splitlines()) == 7
    assert invoke("logs", "tail", log, "-n", 0) == ("", "")


def test_last_lines_of_several_files_are_merged_by_time(tmp_path, log):
    other = tmp_path / "other.log.gz"
    other.write_bytes(gzip.compress(lines_of(record("19:02:20.5", "in between")).encode()))
    output, _ = invoke("logs", "tail", log, other, "-n", 3)
    assert [line.split("     ")[-1] for line in output.splitlines()[1:]] == ["in between", "nobody's line"]
    assert output.splitlines()[1].startswith(f"{other} | ")


@contextlib.contextmanager
def following(*arguments, **options):
    """A ``tail -f`` that has begun; yields what reads its next line."""
    with start("logs", "tail", "-f", *arguments, **options) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            yield lambda: process.stdout.readline().decode()
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
        finally:
            watchdog.cancel()
            process.kill()
    assert process.returncode == 130
    assert (output, errors) == (b"", b"")


def append(file, text):
    with file.open("a") as output:
        output.write(text)


def test_log_can_be_followed_through_all_that_happens_to_it(log):
    with following(log, "-n", 1) as next_line:
        assert next_line().endswith("nobody's line\n")
        append(log, lines_of(record("19:03:00", "one")) + '{"message": "tw')
        assert next_line() == "2026-11-23 19:03:00.000 INFO     one\n"
        append(log, 'o"}\n')
        assert next_line().split() == ["unknown", "time", "two"]
        os.rename(log, log.with_suffix(".1"))
        append(log.with_suffix(".1"), "behind the rename\n")
        assert next_line() == "behind the rename\n"
        log.write_text("in the new file\n")
        assert next_line() == "in the new file\n"
        log.write_text("short\n")
        assert next_line() == "short\n"
        append(log, "\x1b[2Jwiped\u2028\n")
        assert next_line() == "\\x1b[2Jwiped\\u2028\n"


def test_several_files_can_be_followed(tmp_path, log):
    other = tmp_path / "other.log"
    other.touch()
    with following(log, other, "-n", 1, "--json") as next_line:
        assert json.loads(next_line())["message"] == "nobody's line"
        append(other, "text\n" + lines_of({"a": 1}))
        assert json.loads(next_line()) == {"a": 1}
        append(log, lines_of({"b": 1}))
        assert json.loads(next_line()) == {"b": 1}


def test_pipe_can_be_followed():
    with start("logs", "tail", "-f", stdin=subprocess.PIPE) as process:
        process.stdin.write(b'web-1  | {"message": "one"}\n')
        process.stdin.flush()
        assert process.stdout.readline().endswith(b" one\n")
        process.stdin.write(b'{"message": "two"}\n{"message": "thr')
        process.stdin.flush()
        assert process.stdout.readline().endswith(b" two\n")
        output, errors = process.communicate(b'ee"}\n', timeout=30)
        assert output.endswith(b" three\n")
        assert errors == b""
        assert process.returncode == 0


# What cannot be read or found.

COMMANDS = [["errors"], ["closes"], ["tail"], ["show", REF]]


@pytest.fixture(params=COMMANDS, ids=lambda command: command[0])
def command(request):
    return ["logs", *request.param]


def test_file_that_does_not_exist(command, log):
    assert invoke(*command, "none.log", status=2) == ("", "asgi-closecodes: none.log: no such file\n")
    output, errors = invoke(*command, "none.log", "*.none", log, status=2)
    assert "/rooms/{id}" in output or "1011" in output
    assert errors == "asgi-closecodes: none.log: no such file\nasgi-closecodes: *.none: no file matches\n"


def test_directory(command, tmp_path):
    errors = f"asgi-closecodes: {tmp_path}: is a directory; give its files, as {tmp_path}/*.log\n"
    assert invoke(*command, tmp_path, status=2) == ("", errors)


def test_file_that_cannot_be_read(command):
    # Whoever runs this may be root, whom no mode keeps out.
    errors = "asgi-closecodes: /proc/self/mem: cannot be read: Input/output error\n"
    assert invoke(*command, "/proc/self/mem", status=2) == ("", errors)


@pytest.mark.parametrize("content", [b"\x7fELF\x02\0\0\0" * 1000, '{"level": "error"}\n'.encode("utf-16")])
def test_binary_file(command, tmp_path, content):
    (tmp_path / "app.log").write_bytes(content)
    errors = f"asgi-closecodes: {tmp_path}/app.log: is binary; only text and gzip can be read\n"
    assert invoke(*command, tmp_path / "app.log", status=2) == ("", errors)


def test_empty_file(command, tmp_path):
    (tmp_path / "app.log").touch()
    output, errors = invoke(*command, tmp_path / "app.log", status=1)
    assert output == ""
    assert errors.endswith(f": {tmp_path}/app.log is empty\n")
    assert len(errors.splitlines()) <= 2
    output, errors = invoke(*command, status=1)
    assert errors.endswith(": standard input is empty\n")


def test_file_that_is_cut_off_within_a_line(command, log):
    whole = invoke(*command, log)[0]
    append(log, json.dumps(the_error())[:200])
    output, errors = invoke(*command, log)
    assert errors == ("" if "tail" in command else f"asgi-closecodes: {log}: skipped its incomplete last line\n")
    assert output.startswith(whole) or "tail" in command


def test_file_of_several_formats(command, log):
    text = "INFO:     Started server process [5]\n{not json}\n[1, 2]\n\x1b[2J{\n\n"
    log.write_text(text + log.read_text() + text)
    output, errors = invoke(*command, log)
    assert "/rooms/{id}" in output or "1011" in output or "Started server" in output
    assert errors == ""


def test_file_that_is_one_long_line(tmp_path):
    (tmp_path / "app.log").write_bytes(b"x" * 5_000_000)
    errors = f"asgi-closecodes: no errors in {tmp_path}/app.log (0 lines, none of them JSON)\n"
    assert invoke("logs", "errors", tmp_path / "app.log", status=1) == ("", errors)


def test_file_in_which_nothing_is_found(tmp_path):
    log = tmp_path / "app.log"
    log.write_text("one\ntwo\n")
    for command, nothing in {
        "errors": "no errors",
        "stalls": "no stalls",
        "closes": "no closes and no refusals",
    }.items():
        output, errors = invoke("logs", command, log, status=1)
        assert output == ""
        assert errors.startswith(f"asgi-closecodes: {nothing} in {log} (2 lines, none of them JSON)\n")
    log.write_text('{"message": "one"}\n')
    assert "no errors in standard input (1 line)\n" in invoke("logs", "errors", text=log.read_text(), status=1)[1]
    assert "asgi_closecodes.session to DEBUG" in invoke("logs", "closes", log, status=1)[1]


@pytest.mark.parametrize("ref", ["D216BE3DZX4Z", "NOSUCHREF", "REF with spaces", "\x1b[2J", b"\xff"])
def test_unknown_ref(log, ref):
    output, errors = invoke("logs", "show", "--", ref, log, status=1)
    assert output == ""
    assert errors.splitlines()[0].startswith("asgi-closecodes: no error ")
    assert "\x1b" not in errors
    assert len(errors.splitlines()) == 2


def test_empty_ref(log):
    assert "REF is empty; give the text after ref=" in invoke("logs", "show", "", log, status=2)[1]


def test_terminal_without_a_file_is_not_waited_for(command, monkeypatch):
    monkeypatch.setattr("sys.stdin", Output(is_terminal=True))
    _, errors = invoke(*command, status=2, prog_name="asgi-closecodes")
    assert "name a log file, or pipe a log in: docker compose logs | asgi-closecodes logs" in errors


def test_files_and_a_pipe_are_not_followed_together(log):
    assert "-f takes files or one pipe" in invoke("logs", "tail", "-f", log, "-", status=2)[1]


@pytest.mark.parametrize("arguments", [["tail", "-n", "100000"], ["errors"], ["tail", "-n", "100000", "--json"]])
def test_closed_pipe_is_no_error(log, arguments):
    log.write_text("".join(lines_of({**the_error(), "closecodes.error.fingerprint": str(n)}) for n in range(2000)))
    with start("logs", *arguments, log) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


# What is printed cannot drive a terminal.


def raw_controls(text):
    return {char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}} - {"\n"}


NASTY = "a\x1b[2J\r\x00\x85\x9b\x7f\u2028\u202e\u2066[bold]:smile:"


@pytest.mark.parametrize("as_json", [False, True])
def test_hostile_record_is_harmless(log, command, as_json):
    hostile = {key: NASTY if isinstance(value, str) else value for key, value in the_error().items()}
    kept = ("timestamp", "level", "event.name", "closecodes.error.id")
    hostile |= {key: the_error()[key] for key in kept} | {NASTY: NASTY, "exception.stacktrace": f"{NASTY}\n{NASTY}"}
    refused = {
        "event.name": "closecodes.session.refused",
        "closecodes.gate.name": NASTY,
        "closecodes.gate.cause": NASTY,
    }
    lines = [NASTY + json.dumps(hostile, ensure_ascii=False), json.dumps(refused, ensure_ascii=False), NASTY]
    append(log, "".join(line + "\n" for line in lines))
    output, errors = invoke(*command, log, *(["--json"] if as_json else []))
    assert raw_controls(output) == set()
    assert raw_controls(errors) == set()
    assert "[bold]:smile:" in output or "1011" in output


nasty = st.text(st.one_of(st.sampled_from(NASTY + '{}"\n'), st.characters(codec="utf-8")), max_size=10)
values = st.one_of(
    nasty, st.floats(), st.integers(), st.none(), st.booleans(), st.lists(nasty), st.dictionaries(nasty, nasty)
)
hostile_lines = st.builds(
    lambda before, known, other: before + json.dumps({**other, **known}, ensure_ascii=False),
    nasty,
    st.fixed_dictionaries({}, optional={key: st.one_of(st.just(value), values) for key, value in the_error().items()}),
    st.dictionaries(nasty, values, max_size=2),
).map(lambda line: line.encode("utf-8", "surrogatepass"))


@settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
@given(content=st.lists(hostile_lines | st.binary(), max_size=5).map(b"\n".join))
def test_any_bytes_are_a_log(command, tmp_path, content):
    file = tmp_path / "app.log"
    file.write_bytes(content)
    output, errors = invoke(*command, file, status=None)
    assert raw_controls(output + errors) == set()
    output, errors = invoke(*command, file, "--json", status=None)
    assert raw_controls(output + errors) == set()
    for line in output.splitlines():
        json.loads(line)


def on_a_terminal(*arguments, **environment):
    """Run the command as with its output on a terminal, and return what it wrote to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NO_COLOR", raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", **environment}.items():
            patch.setenv(name, value)
        return invoke(*arguments, stdout=Output(is_terminal=True))[0]


def test_colours_on_a_terminal_unless_switched_off(log, command):
    assert "\x1b[" in on_a_terminal(*command, log)
    assert "\x1b" not in on_a_terminal(*command, log, NO_COLOR="1")
    assert "\x1b" not in invoke(*command, log)[0]


def test_colours_with_empty_no_color_but_not_on_dumb_terminals(log):
    """An empty NO_COLOR means nothing; a dumb terminal has no colours."""
    assert "\x1b[" in on_a_terminal("logs", "errors", log, NO_COLOR="")
    assert "\x1b" not in on_a_terminal("logs", "errors", log, TERM="dumb")


def test_terminals_of_a_process_are_recognised(log):
    """Its stdin is not waited for, and its stdout has colours."""
    controller, terminal = pty.openpty()
    run("logs", "errors", stdin=terminal, status=2)
    environment = {**ENVIRONMENT, "TERM": "xterm-256color", "NO_COLOR": ""}
    with start("logs", "errors", log, stdout=terminal, env=environment) as process:
        os.close(terminal)
        output = b""
        with contextlib.suppress(OSError):  # EIO is the end
            while piece := os.read(controller, 65536):
                output += piece
        assert process.wait(60) == 0
    os.close(controller)
    assert b"\x1b[" in output


def test_frames_of_libraries_are_dimmed(log):
    lines = on_a_terminal("logs", "show", REF, log).splitlines()
    [theirs] = [line for line in lines if "site-packages" in line]
    [ours] = [line for line in lines if "/app/rooms.py" in line]
    assert theirs.startswith("    \x1b[2m")
    assert "\x1b" not in ours


def test_encoding_that_knows_no_bars_is_no_problem(log, command):
    output, _ = invoke(*command, log, stdout=Output("ascii"))
    assert output
    assert "\\u" not in output


def test_encoding_of_a_process_without_bars_is_no_problem(log):
    output, _ = run("logs", "errors", log, env={**ENVIRONMENT, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert output.isascii()


# The journey.


def test_from_the_close_reason_to_the_stack_trace(tmp_path):
    with serve("uvicorn-sansio", "demo_app.app:create_app", tmp_path, "--factory", forked=True) as demo:
        refs = [connect(demo, "/crash-after-accept").ref for _ in range(3)]
        connect(demo, "/crash-on-message", say="x")
        assert demo.wait_for_records(4, event__name="closecodes.session.exception")
    [file] = tmp_path.glob("*.log")
    output, _ = invoke("logs", "show", refs[1], file)
    assert "in crash_after_accept\n" in output
    assert 'raise LookupError("a bug after accept; this text stays on the server")' in output
    errors = run_json("logs", "errors", file)
    assert errors["count"] == 4
    assert [kind["frame"]["function"] for kind in errors["errors"]] == ["crash_after_accept", "crash_on_message"]
    assert run_json("logs", "closes", file)["closes"][0]["count"] == 4


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "patience", "is_shown"), [(Terminal, 0, True), (Terminal, 60, False), (io.StringIO, 0, False)]
)
def test_progress_is_shown_on_a_terminal_once_it_takes_long(monkeypatch, stream, patience, is_shown):
    monkeypatch.setattr("asgi_closecodes.cli.output._SHOW_PROGRESS_AFTER_S", patience)
    monkeypatch.setattr("sys.stderr", stderr := stream())
    monkeypatch.setenv("TERM", "xterm")
    with progress("reading", 4 * 2**20) as advance:
        advance(2**20)
        advance(2**20)
    assert ("reading" in stderr.getvalue()) == ("2.0/4.0 MiB" in stderr.getvalue()) == is_shown


# lnav


def test_format_for_lnav_knows_keys_that_are_written():
    values = json.loads(LNAV_FORMAT.read_text())["closecodes_log"]["value"]
    schema = json.loads(files("asgi_closecodes.logs").joinpath("schema.json").read_text())
    assert values.keys() <= schema["properties"].keys()


def test_lnav_reads_it_with_the_format_that_is_shipped(tmp_path):
    log = tmp_path / "app.log"
    log.write_bytes(b"".join(line + b"\n" for line in logged(*[failed()] * 30)))
    environment = {**ENVIRONMENT, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "TERM": "dumb"}
    path = run("logs", "lnav-format")[0].strip()

    def lnav(*arguments):
        command = [program("lnav"), *arguments]
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )

    lnav("-i", path)
    shown = lnav("-n", str(log)).stdout
    assert "LookupError in the WebSocket handler of /rooms/{id}; close code 1011; ref=ABCDEFGHJKMN" in shown
    assert ", in join\n" in shown
    query = (
        'SELECT "closecodes.error.fingerprint", log_level, count(*) + sum("closecodes.error.suppressed") '
        "FROM closecodes_log WHERE \"event.name\" = 'closecodes.session.exception' GROUP BY 1, 2"
    )
    counted = lnav("-n", "-q", "-c", f";{query}", "-c", ":write-csv-to -", str(log)).stdout
    assert counted.splitlines()[1:] == ["0123456789ab,error,10"]
