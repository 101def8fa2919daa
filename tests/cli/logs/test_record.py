"""A record gives the same answers whichever formatter wrote it, and has an answer whatever the line holds."""

import json
import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pythonjsonlogger.json import JsonFormatter as PlainJsonFormatter

from asgi_closecodes import Close, events
from asgi_closecodes.cli.logs.record import Record, dumps
from asgi_closecodes.logs import LogObserver
from tests.support import log_lines
from tests.support.every_event import FACTS, LOGGED
from tests.support.log_lines import FORMATTERS, failed


@pytest.fixture(params=FORMATTERS)
def formatter(request):
    return FORMATTERS[request.param]


def parsed(line):
    return Record.parse(line.encode() if isinstance(line, str) else line)


def test_error_is_the_same_in_each_format(records, formatter):
    LogObserver()(failed())
    record = parsed(formatter.format(records[0]))
    assert record.event == "closecodes.session.exception"
    assert record.is_error
    assert record.error_id == "ABCDEFGHJKMN"
    assert record.session == "0123456789ab"
    assert record.code == 1011
    assert record.suppressed == 0
    assert record.message == records[0].getMessage()
    assert record.error_type == "LookupError"
    assert (record.frame.file, record.frame.function) == (log_lines.__file__, "join")
    assert "in failed" in record.trace
    if record.time is not None:
        assert abs(record.time - records[0].created) < 1.1  # structlog takes its own time, ECS is in milliseconds


def test_warning_with_an_exception_is_none(records, formatter):
    LogObserver()(events.CloseFailed(FACTS, Close(1011), failed().exception))
    assert not parsed(formatter.format(records[0])).is_error


@pytest.mark.parametrize("name", LOGGED)
def test_error_without_a_level_is_recognised(records, formatter, name):
    LogObserver()(LOGGED[name])
    level = records[0].levelname
    record = parsed(formatter.format(records[0]))
    assert record.event == name
    assert record.is_error == (level == "ERROR")
    assert record.level in {level.lower(), ""}
    assert not record.is_summary


def test_summaries_tell_what_they_stand_for(records, formatter):
    observer = LogObserver()
    for _ in range(30):
        observer(failed())
    observer.flush_summaries(now=True)
    *lines, summary = (parsed(formatter.format(record)) for record in records)
    assert summary.is_summary
    assert summary.is_error
    assert summary.summary_of == "closecodes.session.exception"
    assert len(lines) + summary.suppressed == 30


def test_times_without_an_offset_are_of_this_place():
    formatter = PlainJsonFormatter("{asctime}", style="{")
    record = logging.makeLogRecord({"created": 1_790_000_000.25, "msecs": 250.0, "msg": "x"})
    assert parsed(formatter.format(record)).time == 1_790_000_000.25


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"timestamp": "2026-11-23T19:02:19.520592Z"}, 1795460539.520592),
        ({"@timestamp": "2026-11-23T20:02:19.520+01:00"}, 1795460539.52),
        ({"timestamp": "2026-11-23T19:02:19.520592123Z"}, 1795460539.520592),
        ({"ts": 1795460539}, 1795460539),
        ({"time": "1795460539.5"}, 1795460539.5),
        ({"time": 1795460539520}, 1795460539.52),
        ({"time": 1795460539520592}, 1795460539.520592),
        ({"time": 1795460539520592123}, 1795460539.520592),
        ({"timestamp": "yesterday", "time": 1795460539}, 1795460539),
        ({"timestamp": -5}, None),
        ({"timestamp": True}, None),
        ({"timestamp": "9999-99-99"}, None),
        ({"timestamp": "0001-01-01"}, None),
        ({"timestamp": "inf"}, None),
        ({"timestamp": 10**400}, None),
        ({"timestamp": 1e308}, None),
        ({}, None),
    ],
)
def test_times(keys, expected):
    record = Record({"message": "x", **keys})
    assert record.time == (expected and pytest.approx(expected, abs=1e-5))


@pytest.mark.parametrize(
    ("keys", "level"),
    [
        ({"level": "WARN"}, "warning"),
        ({"levelname": "CRITICAL"}, "critical"),
        ({"level": 40}, "error"),
        ({"log.level": "fatal"}, "critical"),
        ({"log": {"level": "error"}}, "error"),
        ({"level": ["error"]}, ""),
        ({"level": 7}, ""),
        ({}, ""),
    ],
)
def test_levels(keys, level):
    assert Record(keys).level == level


@pytest.mark.parametrize(
    ("line", "prefix"),
    [
        ('web-1  | {"a": 1}', "web-1  | "),
        ('2026-11-23T19:02:19.5Z stderr F {"a": 1}', "2026-11-23T19:02:19.5Z stderr F "),
        ('\x1b[36mweb-1  |\x1b[0m { "a": 1}\x1b[0m\r', "\x1b[36mweb-1  |\x1b[0m "),
        ('Nov 23 host web[5]: {worker} {"x"} {"a": 1}', 'Nov 23 host web[5]: {worker} {"x"} '),
        ('\ufeff{"a": 1}', "\ufeff"),
    ],
)
def test_prefix_of_a_line_is_passed_over(line, prefix):
    record = parsed(line)
    assert record.raw == {"a": 1}
    assert record.prefix == prefix


@pytest.mark.parametrize(
    "line",
    ["", "text", '{"a": 1', '{"a": 1} and more', "{}", "[1]", '"x"', "null", '{"a": ' + "[" * 100_000, '{"' * 1000],
)
def test_other_lines_are_text(line):
    assert parsed(line) is None


GROUP = """  + Exception Group Traceback (most recent call last):
  |   File "/app/rooms.py", line 5, in join
  |     await all()
  | rooms.SeveralErrors: several (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/app/rooms.py", line 9, in one
    | KeyError: 'x'
    +------------------------------------
"""
CHAIN = """Traceback (most recent call last):
  File "/app/store.py", line 5, in load
    self.cache[key]
KeyError: 'x'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/app/rooms.py", line 9, in join
    await store.load()
  File "/app/.venv/lib/python3.12/site-packages/anyio/to_thread.py", line 5, in run_sync
    raise Busy
anyio.Busy: a message
of: two lines
"""


@pytest.mark.parametrize(
    ("trace", "kind", "frame"),
    [
        (GROUP, "rooms.SeveralErrors", "/app/rooms.py:9 in one"),
        (CHAIN, "anyio.Busy", "/app/rooms.py:9 in join"),
        ("KeyError", "KeyError", None),
        ("", "", None),
    ],
)
def test_stack_trace_alone_names_the_error(trace, kind, frame):
    record = Record({"message": "failed", "exc_info": trace})
    assert record.error_type == kind
    assert str(record.frame) == str(frame)


def test_local_variables_of_a_structured_trace_are_left_out():
    frame = {"filename": "/app/a.py", "lineno": 5, "name": "f", "locals": {"password": "hunter2"}}
    record = Record({"exception": [{"exc_type": "KeyError", "exc_value": "'x'", "frames": [frame, "nonsense"]}, 5]})
    assert record.trace == ""
    record = Record({"exception": [{"exc_type": "KeyError", "exc_value": "'x'", "frames": [frame, "nonsense"]}]})
    assert str(record.frame) == "/app/a.py:5 in f"
    assert "hunter2" not in record.trace


anything = st.recursive(
    st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.booleans()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
known = st.sampled_from(
    "timestamp time level levelname levelno log log.level message event msg event.name exception exc_info error "
    "exception.type exception.stacktrace closecodes.error.id closecodes.error.suppressed websocket.close.code "
    "closecodes.suppressed.event process".split()
)


@given(st.dictionaries(known | st.text(), anything, max_size=5))
def test_every_question_has_an_answer(raw):
    record = Record(json.loads(json.dumps(raw)))
    for name in ("message", "level", "logger", "event", "summary_of", "session", "error_id", "trace", "error_type"):
        assert isinstance(getattr(record, name), str)
    assert record.time is None or math.isfinite(record.time)
    assert record.suppressed >= 0
    assert record.code is None or 0 <= record.code < 65536
    assert isinstance(record.is_error, bool)
    assert record.frame is None or str(record.frame)


@given(st.binary())
def test_any_bytes_are_a_line(line):
    parsed(line)
    parsed(b'{"' + line)


@given(st.dictionaries(st.text(), anything, max_size=3))
def test_json_is_printed_as_printable_ascii(raw):
    text = dumps(raw)
    assert text.isascii()
    assert text.isprintable()
    if "inf" not in str(raw) and "nan" not in str(raw):
        assert json.loads(text) == raw


def test_what_json_cannot_express_is_printed_all_the_same():
    assert parsed('{"a": NaN, "b": -Infinity}').raw == {"a": "NaN", "b": "-Infinity"}
    assert "inf" in dumps(parsed('{"a": 1e999}').raw)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert json.loads(dumps({"a": deep}))
