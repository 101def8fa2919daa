"""A line of a log that is JSON, whichever formatter wrote it: the same few questions have an answer for all of them.

It knows the keys of this package's formatter, of python-json-logger, structlog and ecs-logging. Nothing is trusted: any
value may be missing or of any type.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import logging
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from asgi_closecodes.cli.output import COLOUR, at, has_colours
from asgi_closecodes.error_identity import is_library
from asgi_closecodes.events import SessionFailed
from asgi_closecodes.logs.formatters import console_line
from asgi_closecodes.logs.messages import LINES, SUMMARIES, SUPPRESSED

_OBJECT = re.compile(r'\{\s*"')
_MOST_STARTS = 5
"""Places in a line where its object may begin: behind a prefix there may be braces too."""
_MOST_LEVELS = 8
"""Objects in objects that are flattened."""
_MOST_ELEMENTS = 100_000
"""Commas outside of strings in a line that is read as JSON: each may cost 200 bytes."""
_STRING = re.compile(r'"(?:[^"\\]++|\\.?)*+(?:"|$)', re.DOTALL)
_LONGEST_PREFIX = 200
_LONGEST_NAME = 512
_LONGEST_TIME = 64
LONGEST_LINE = 64 * 1024
"""Bytes of a line that is kept as it is."""
# What is left of a longer one.
_LONGEST_TEXTS = (32 * 1024, 4 * 1024, 200)
_MOST_ITEMS = 200
_LATEST = 1e10
"""What lies behind the year 2286 is no time; neither is what lies before 1970."""

_TIMES = ("timestamp", "@timestamp", "asctime", "time", "ts", "created")
_LEVELS = ("level", "levelname", "log.level", "severity", "levelno")
_MESSAGES = ("message", "event", "msg")
_LOGGERS = ("logger", "log.logger", "name")
_TRACES = ("exception.stacktrace", "exc_info", "exception", "error.stack_trace", "stack_trace", "exc_text")
_OTHER_NAMES = {"warn": "warning", "fatal": "critical", "exception": "error"}

_FAILURES = frozenset(line.name for line in LINES.values() if line.level == logging.ERROR)
_SUMMARIES = frozenset(SUMMARIES.values())

_FRAME = re.compile(r'File "(?P<file>[^"\n]{1,512})", line (?P<line>\d+), in (?P<function>[^\n]+)')
_RAISED = re.compile(r"^(?:  \| )?(?P<type>[^\W\d][\w.]*)(?::|$| \()", re.MULTILINE)
_GROUP = "  + Exception Group Traceback"
_IN_HANDLER = re.compile(r"(\S+) in the WebSocket handler of ")

_decoder = json.JSONDecoder(parse_constant=str)  # NaN and Infinity are no JSON: they become text


class Frame(NamedTuple):
    """A line of a stack trace."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


class Record:
    """One line of a log.

    :ivar raw: the object as it was written.
    :ivar keys: the same without objects in objects: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``.
    :ivar prefix: what stood before it in its line, as ``web-1  | ``.
    :ivar file: the name of its file.
    """

    def __init__(self, raw: dict[str, Any], prefix: str = "", file: str = "") -> None:
        self.raw = raw
        self.keys = dict(_flat(raw, "", _MOST_LEVELS)) if any(type(value) is dict for value in raw.values()) else raw
        self.prefix = prefix
        self.file = file

    @classmethod
    def parse(cls, line: bytes, file: str = "") -> Record | None:
        """Return the record that ``line`` ends with, or None where it is only text."""
        may_be_large = len(line) > LONGEST_LINE and line.count(b",") > _MOST_ELEMENTS
        text = line.decode("utf-8", "replace")
        for _, start in zip(range(_MOST_STARTS), _OBJECT.finditer(text), strict=False):
            if may_be_large and _STRING.sub("", text[start.start() :]).count(",") > _MOST_ELEMENTS:
                continue
            try:
                raw, end = _decoder.raw_decode(text, start.start())
            except (ValueError, RecursionError):
                continue
            if end == len(text) or not COLOUR.sub("", text[end:]).strip():
                return cls(raw, cut(text[: start.start()], _LONGEST_PREFIX), file)
        return None

    @cached_property
    def time(self) -> float | None:
        """Seconds since 1970, or None if it does not say."""
        return next((time for key in _TIMES if (time := _moment(self.keys.get(key))) is not None), None)

    @cached_property
    def level(self) -> str:
        """The level's name in lower case; empty if it does not say."""
        for key in _LEVELS:
            value = self.keys.get(key)
            if isinstance(value, str) and (name := value.strip().lower()):
                return _OTHER_NAMES.get(name, name)
            if isinstance(value, int) and isinstance(name := logging.getLevelName(value), str) and name.isalpha():
                return name.lower()
        return ""

    @cached_property
    def is_error(self) -> bool:
        """Whether it is as bad as an error; where the level is missing, whether it looks like one."""
        if self.level:
            return self.level in {"error", "critical"}
        if self.event.startswith("closecodes."):
            return self.event in _FAILURES or self.summary_of in _FAILURES
        return bool(self.trace)

    @cached_property
    def message(self) -> str:
        """What it says, for people."""
        return self.text(*_MESSAGES)

    @property
    def logger(self) -> str:
        """The name of its logger."""
        return self.text(*_LOGGERS)

    @property
    def event(self) -> str:
        """The name of its event; empty for records of others."""
        return self.text("event.name")

    @property
    def summary_of(self) -> str:
        """The event whose records it counts, where it is a summary of some that were not written."""
        return self.text("closecodes.suppressed.event")

    @property
    def is_summary(self) -> bool:
        """Whether it stands only for others, which were not written."""
        return self.event in _SUMMARIES

    @property
    def suppressed(self) -> int:
        """How many records of its kind were counted instead of written since the one before it."""
        for key in SUPPRESSED.values():
            value = self.keys.get(key)
            if type(value) is int and 0 < value < 2**53:
                return value
        return 0

    @property
    def code(self) -> int | None:
        """The close code."""
        value = self.keys.get("websocket.close.code")
        return value if type(value) is int and 0 <= value < 2**16 else None

    @property
    def session(self) -> str:
        """The id of its session."""
        return self.text("closecodes.session.id")

    @property
    def error_id(self) -> str:
        """The ``ref`` that the client was told."""
        return self.text("closecodes.error.id")

    @cached_property
    def trace(self) -> str:
        """The stack trace as Python prints it; empty if there is none."""
        for key in _TRACES:
            value = self.keys.get(key)
            if isinstance(value, str) and value:
                return value
            if isinstance(value, list) and (text := _trace_of(value)):
                return text
        return ""

    @cached_property
    def error_type(self) -> str:
        """The exception's type."""
        if told := self.text("exception.type", "error.type"):
            return told
        if self.event == SessionFailed.event_name and (match := _IN_HANDLER.match(self.message)):
            return match[1]
        trace = self.trace
        # Behind the last frame; of a group it is the first such line, after which those of its members come.
        behind = 0 if trace.startswith(_GROUP) else max((frame.end() for frame in _FRAME.finditer(trace)), default=0)
        raised = (match for match in _RAISED.finditer(trace, behind) if match["type"] != "Traceback")
        match = next(raised, None)
        return match["type"] if match else ""

    @cached_property
    def frame(self) -> Frame | None:
        """The innermost line of the application in the stack trace; of a library, where there is none."""
        found = None
        for match in _FRAME.finditer(self.trace):
            if found is None or not is_library(match["file"]) or is_library(found["file"]):
                found = match
        if found is None:
            return None
        return Frame(found["file"], int(found["line"][:9]), cut(found["function"], _LONGEST_NAME))

    def size(self) -> int:
        """Return about how many characters its texts have."""
        return _size(self.raw)

    def shortened(self) -> Record:
        """Return one that may be kept: itself, or where that would be long, one whose texts end with an ellipsis."""
        if _size(self.raw) <= LONGEST_LINE:
            return self
        for longest in _LONGEST_TEXTS:
            raw = _shortened(self.raw, longest, _MOST_LEVELS)
            if _size(raw) <= LONGEST_LINE:
                break
        else:
            raw = {"message": "…"}
        return Record(raw, self.prefix, self.file)

    def text(self, *names: str) -> str:
        """Return the first of the keys ``names`` that holds text or a number, as text; empty if none does."""
        for name in names:
            value = self.keys.get(name)
            if isinstance(value, str) and value:
                return value
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return repr(value)
        return ""


def cut(text: str, longest: int) -> str:
    """Return ``text``, or its first characters and an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def compact(line: bytes) -> bytes:
    """Return ``line`` as it may be kept: where it is long, its record or its text shortened."""
    if len(line) <= LONGEST_LINE:
        return line
    if (record := Record.parse(line)) is None:
        return cut(line[:LONGEST_LINE].decode("utf-8", "replace"), _LONGEST_TEXTS[1]).encode("utf-8", "replace")
    return (record.prefix + dumps(record.shortened().raw)).encode("utf-8", "replace")


def _shortened(value: Any, longest: int, levels: int) -> Any:
    match value:
        case str():
            return cut(value, longest)
        case int() if abs(value) >= 10**_LONGEST_TIME:
            return "…"
        case dict() | list() if not levels:
            return "…"
        case dict():
            items = itertools.islice(value.items(), _MOST_ITEMS)
            return {cut(key, _LONGEST_NAME): _shortened(one, longest, levels - 1) for key, one in items}
        case list():
            return [_shortened(one, longest, levels - 1) for one in value[:_MOST_ITEMS]]
        case _:
            return value


def _size(value: Any) -> int:
    size = 0
    pending = [value]
    while pending:
        match pending.pop():
            case str(text):
                size += len(text)
            case dict(items):
                size += sum(map(len, items))
                pending += items.values()
            case list(items):
                pending += items
            case int(number):
                size += number.bit_length() // 3
            case _:
                pass
        size += 8
    return size


def dumps(value: object) -> str:
    """Return ``value`` as JSON in one line of printable ASCII."""
    try:
        return json.dumps(value, allow_nan=False, default=str)
    except (ValueError, RecursionError):  # a number too large for a float became infinity; lists in lists in lists
        return json.dumps(_as_text(value))


def _as_text(value: object) -> str:
    try:
        return str(value)
    except RecursionError:
        return "nested too deeply"


def _flat(nested: Mapping[str, Any], prefix: str, levels: int) -> Iterable[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, dict) and levels:
            yield from _flat(value, f"{prefix}{key}.", levels - 1)
        else:
            yield f"{prefix}{key}", value


def _moment(value: object) -> float | None:
    """Return ``value``, ISO 8601 or a number of seconds or of a part of them, as seconds since 1970."""
    if isinstance(value, str):
        if len(value) > _LONGEST_TIME:
            return None
        try:
            # Without an offset it is a time of the place where it is read, as for logging's %(asctime)s.
            number = dt.datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError, OSError):
            try:
                number = float(value)
            except ValueError:
                return None
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            return None
    else:
        return None
    for unit in (1.0, 1e3, 1e6, 1e9):
        if 0 < number < _LATEST * unit:
            return number / unit
    return None


def _trace_of(parts: list[Any]) -> str:
    """Return a stack trace that was written in parts: lines, or exceptions as structlog's ``dict_tracebacks``."""
    if all(isinstance(part, str) for part in parts):
        return "\n".join(parts)
    blocks = []
    for error in parts:
        if not isinstance(error, dict):
            return ""
        frames = error.get("frames")
        lines = ["Traceback (most recent call last):"]
        lines += [  # and never the locals
            f'  File "{frame.get("filename")}", line {frame.get("lineno")}, in {frame.get("name")}'
            for frame in (frames if isinstance(frames, list) else ())
            if isinstance(frame, dict)
        ]
        lines.append(f"{error.get('exc_type')}: {error.get('exc_value')}")
        blocks.append("\n".join(lines))
    return "\n\nwhich came out of:\n\n".join(reversed(blocks))


def record_line(record: Record) -> str:
    """Return a record of a log as one line for people."""
    level = (record.level or ("error" if record.is_error else "")).upper()
    keys = {key: record.text(key) for key in ("closecodes.session.id", "client.address") if record.text(key)}
    return console_line(at(record.time, precise=True), level, record.message, keys, colours=has_colours())
