"""JSON log records of several formatters behind one interface.

It knows the keys of this package's formatter, python-json-logger, structlog and ecs-logging. Any value may be missing
or have any type.
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
from asgi_closecodes.events import LoopStalled, SessionFailed
from asgi_closecodes.logs.formatters import console_line
from asgi_closecodes.logs.messages import LINES, SUMMARIES, SUPPRESSED

_OBJECT = re.compile(r'\{\s*"')
_MAX_STARTS = 5
"""Positions tried as the start of the object: prefixes may contain braces."""
_MAX_LEVELS = 8
"""Levels of nested objects that are flattened."""
_MAX_COMMAS = 100_000
"""Commas outside of strings in a parsed line: each may cost 200 bytes of memory."""
_STRING = re.compile(r'"(?:[^"\\]++|\\.?)*+(?:"|$)', re.DOTALL)
_MAX_PREFIX_CHARS = 200
_MAX_NAME_CHARS = 512
_MAX_TIME_CHARS = 64
MAX_KEPT_LINE_BYTES = 64 * 1024
"""Longer lines are shortened before they are kept."""
# Tried in turn for the texts of longer lines.
_MAX_TEXT_CHARS = (32 * 1024, 4 * 1024, 200)
_MAX_ITEMS = 200
_LATEST_S = 1e10
"""Times after the year 2286 are invalid, and so are those before 1970."""
_LONGEST_STALL_S = 1e9
_MOST_LINES = 10**9

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

_decoder = json.JSONDecoder(parse_constant=str)  # NaN and Infinity are not JSON: they become text


class Frame(NamedTuple):
    """Frame of a stack trace."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


class Record:
    """JSON record of a log line.

    :ivar raw: the object as written.
    :ivar keys: the flattened object: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``.
    :ivar prefix: text before the object in its line, as ``web-1  | ``.
    :ivar file: name of its file.
    """

    def __init__(self, raw: dict[str, Any], prefix: str = "", file: str = "") -> None:
        self.raw = raw
        self.keys = dict(_flat(raw, "", _MAX_LEVELS)) if any(type(value) is dict for value in raw.values()) else raw
        self.prefix = prefix
        self.file = file

    @classmethod
    def parse(cls, line: bytes, file: str = "") -> Record | None:
        """Return the record at the end of ``line``, or None for plain text."""
        may_be_large = len(line) > MAX_KEPT_LINE_BYTES and line.count(b",") > _MAX_COMMAS
        text = line.decode("utf-8", "replace")
        for _, start in zip(range(_MAX_STARTS), _OBJECT.finditer(text), strict=False):
            if may_be_large and _STRING.sub("", text[start.start() :]).count(",") > _MAX_COMMAS:
                continue
            try:
                raw, end = _decoder.raw_decode(text, start.start())
            except (ValueError, RecursionError):
                continue
            if end == len(text) or not COLOUR.sub("", text[end:]).strip():
                return cls(raw, cut(text[: start.start()], _MAX_PREFIX_CHARS), file)
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
        """Readable message."""
        return self.text(*_MESSAGES)

    @property
    def logger(self) -> str:
        """Name of its logger."""
        return self.text(*_LOGGERS)

    @property
    def event(self) -> str:
        """Name of its event; empty for records of other libraries."""
        return self.text("event.name")

    @property
    def summary_of(self) -> str:
        """Name of the suppressed event, for a summary."""
        return self.text("closecodes.suppressed.event")

    @property
    def is_summary(self) -> bool:
        """Whether it is a summary of suppressed records."""
        return self.event in _SUMMARIES

    @property
    def suppressed(self) -> int:
        """Number of suppressed records of its kind since the previous one."""
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
        """The ``ref`` in the close reason."""
        return self.text("closecodes.error.id")

    @cached_property
    def trace(self) -> str:
        """Stack trace as Python prints it; empty without one."""
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
        if name := self.text("exception.type", "error.type"):
            return name
        if self.event == SessionFailed.event_name and (match := _IN_HANDLER.match(self.message)):
            return match[1]
        trace = self.trace
        # The line after the last frame. For a group it is the first such line; those of its members follow.
        behind = 0 if trace.startswith(_GROUP) else max((frame.end() for frame in _FRAME.finditer(trace)), default=0)
        raised = (match for match in _RAISED.finditer(trace, behind) if match["type"] != "Traceback")
        match = next(raised, None)
        return match["type"] if match else ""

    @cached_property
    def frame(self) -> Frame | None:
        """Innermost frame of the application in the stack trace, else of a library."""
        found = None
        for match in _FRAME.finditer(self.trace):
            if found is None or not is_library(match["file"]) or is_library(found["file"]):
                found = match
        if found is None:
            return None
        return Frame(found["file"], int(found["line"][:9]), cut(found["function"], _MAX_NAME_CHARS))

    @property
    def stack(self) -> str:
        """Stack of a stalled event loop as Python prints it; empty for other records."""
        stack = self.keys.get("code.stacktrace")
        return stack if isinstance(stack, str) and self.event == LoopStalled.event_name else ""

    @property
    def stalled(self) -> float:
        """Seconds that the event loop stood still."""
        value = self.keys.get("closecodes.stall.duration")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < _LONGEST_STALL_S:
            return 0.0
        return float(value)

    @property
    def stalled_at(self) -> Frame | None:
        """Innermost frame of the application in a stall, else of a library."""
        if not (file := self.text("code.file.path")):
            return None
        line = self.keys.get("code.line.number")
        number = line if type(line) is int and 0 <= line < _MOST_LINES else 0
        return Frame(cut(file, _MAX_NAME_CHARS), number, cut(self.text("code.function.name"), _MAX_NAME_CHARS))

    def size(self) -> int:
        """Return the approximate number of characters of its texts."""
        return _size(self.raw)

    def shortened(self) -> Record:
        """Return itself, or a copy with truncated texts if it is long."""
        if _size(self.raw) <= MAX_KEPT_LINE_BYTES:
            return self
        for longest in _MAX_TEXT_CHARS:
            raw = _shortened(self.raw, longest, _MAX_LEVELS)
            if _size(raw) <= MAX_KEPT_LINE_BYTES:
                break
        else:
            raw = {"message": "…"}
        return Record(raw, self.prefix, self.file)

    def text(self, *names: str) -> str:
        """Return the first text or number among the keys ``names`` as text; empty without one."""
        for name in names:
            value = self.keys.get(name)
            if isinstance(value, str) and value:
                return value
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return repr(value)
        return ""


def cut(text: str, longest: int) -> str:
    """Return ``text``, truncated with an ellipsis if it is longer."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def compact(line: bytes) -> bytes:
    """Return ``line``, with its record or its text shortened if it is long."""
    if len(line) <= MAX_KEPT_LINE_BYTES:
        return line
    if (record := Record.parse(line)) is None:
        return cut(line[:MAX_KEPT_LINE_BYTES].decode("utf-8", "replace"), _MAX_TEXT_CHARS[1]).encode("utf-8", "replace")
    return (record.prefix + dumps(record.shortened().raw)).encode("utf-8", "replace")


def _shortened(value: Any, longest: int, levels: int) -> Any:
    match value:
        case str():
            return cut(value, longest)
        case int() if abs(value) >= 10**_MAX_TIME_CHARS:
            return "…"
        case dict() | list() if not levels:
            return "…"
        case dict():
            items = itertools.islice(value.items(), _MAX_ITEMS)
            return {cut(key, _MAX_NAME_CHARS): _shortened(one, longest, levels - 1) for key, one in items}
        case list():
            return [_shortened(one, longest, levels - 1) for one in value[:_MAX_ITEMS]]
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
    except (ValueError, RecursionError):  # infinity from a number too large for a float, or deep nesting
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
    """Parse ISO 8601, or seconds, milliseconds, microseconds or nanoseconds; return seconds since 1970."""
    if isinstance(value, str):
        if len(value) > _MAX_TIME_CHARS:
            return None
        try:
            # Without an offset it is local time, as logging's %(asctime)s.
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
        if 0 < number < _LATEST_S * unit:
            return number / unit
    return None


def _trace_of(parts: list[Any]) -> str:
    """Return a stack trace written as lines, or as exceptions of structlog's ``dict_tracebacks``."""
    if all(isinstance(part, str) for part in parts):
        return "\n".join(parts)
    blocks = []
    for error in parts:
        if not isinstance(error, dict):
            return ""
        frames = error.get("frames")
        lines = ["Traceback (most recent call last):"]
        lines += [  # without local variables
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
