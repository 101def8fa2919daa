"""Formatters: a JSON line for machines, readable text for a terminal.

Both format any logger's records. Text from outside cannot forge a line; local variables are never printed.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from asgi_closecodes.error_identity import is_library, type_name

from .redaction import one_line
from .stack_traces import Error, capped, stack_trace

_MAX_NOTES = 16
_MAX_NOTE_BYTES = 2 * 1024


def _error_of(record: logging.LogRecord) -> Error | None:
    info = record.exc_info
    return info if isinstance(info, tuple) and info[0] is not None and info[1] is not None else None


def _notes_of(error: BaseException) -> list[str]:
    try:
        notes = list(getattr(error, "__notes__", ()))
    except Exception:
        return []  # not a list, or it raises
    return [capped(_text_of(note), _MAX_NOTE_BYTES) for note in notes[:_MAX_NOTES]]


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<unprintable {type(value).__name__}>"


_encoded = json.JSONEncoder(allow_nan=False, default=_text_of).encode


_NO_EXTRAS = frozenset({*vars(logging.makeLogRecord({})), "asctime", "color_message", "message", "taskName"})
"""Attributes of a record that are its own; color_message is uvicorn's second copy of its message."""


class JsonFormatter(logging.Formatter):
    """Format each record as one line of JSON.

    Keys besides the extras: ``timestamp`` (RFC 3339, UTC), ``level`` (lower case), ``logger``, ``message`` and
    ``process.pid``. An exception adds ``exception.type``, ``.message``, ``.stacktrace`` (at most 32 KiB) and
    ``.notes``. A dictionary that is logged instead of a message counts as extras. Values that JSON cannot hold are
    written as text.
    """

    def __init__(self) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for ``record``, in printable ASCII."""
        message: object = record.msg
        extras = message if isinstance(message, dict) else {}
        record.message = "" if isinstance(message, dict) else record.getMessage()
        time = dt.datetime.fromtimestamp(record.created, dt.UTC)
        fixed: dict[Any, object] = {
            "timestamp": time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.message,
            "process.pid": record.process,
        }
        fields = {**fixed, **extras}
        if record.stack_info:
            fields["stack_info"] = record.stack_info
        fields |= {key: value for key, value in vars(record).items() if _is_extra(key)}
        fields |= fixed  # extras must not overwrite the logger or the time
        fields |= _exception_fields(record)
        try:
            return _encoded(fields)
        except (TypeError, ValueError, RecursionError):  # NaN, a key that is not a string, a cycle
            return _encoded({_text_of(key): _plain(value) for key, value in fields.items()})


def _is_extra(key: object) -> bool:
    return key not in _NO_EXTRAS and not (isinstance(key, str) and key.startswith("_"))


def _exception_fields(record: logging.LogRecord) -> dict[str, object]:
    error = _error_of(record)
    if error is None:
        text = record.exc_text  # formatted before it was queued
        return {"exception.stacktrace": capped(_text_of(text))} if text else {}
    fields: dict[str, object] = {
        "exception.type": type_name(error[0]),
        "exception.message": capped(_text_of(error[1])),
        "exception.stacktrace": capped(stack_trace(error)),
    }
    if notes := _notes_of(error[1]):
        fields["exception.notes"] = notes
    return fields


def _plain(value: object) -> object:
    try:
        _encoded(value)
    except (TypeError, ValueError, RecursionError):
        return _text_of(value)
    return value


_LEVEL_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_FRAME = re.compile(r'\s*(?:\| )*\s*File "(?P<file>[^"]*)", line ')
_SHOWN = {"session": "closecodes.session.id", "client": "client.address"}


class ConsoleFormatter(logging.Formatter):
    """Format each record as one line, with its indented stack trace below; library frames are dimmed.

    :param colours: use ANSI colours.
    """

    def __init__(self, *, colours: bool = False) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as one line, and its stack trace."""
        error = _error_of(record)
        stack = getattr(record, "code.stacktrace", None)  # of a stall
        traces = (
            stack_trace(error) if error is not None else record.exc_text,
            record.stack_info,
            stack if isinstance(stack, str) else None,
        )
        time = dt.datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        lines = [console_line(time, record.levelname, record.getMessage(), vars(record), colours=self._colours)]
        for trace in filter(None, traces):
            lines += trace_lines(capped(trace), colours=self._colours)
        return "\n".join(lines)


def console_line(time: str, level: str, message: str, keys: Mapping[str, object], *, colours: bool = False) -> str:
    """Return one readable line. It contains no terminal control sequences besides ``colours``."""
    shown = [f"{name}={keys[key]}" for name, key in _SHOWN.items() if key in keys]
    details = painted("2", one_line("  " + " ".join(shown)), colours=colours) if shown else ""
    coloured_level = painted(_LEVEL_COLOURS.get(level, "0"), f"{one_line(level):<8}", colours=colours)
    return f"{time} {coloured_level} {one_line(message)}{details}"


def trace_lines(trace: str, *, colours: bool = False) -> Iterator[str]:
    """Yield the indented lines of a stack trace; ``colours`` dims library frames."""
    dimmed = False
    for line in trace.rstrip("\n").split("\n"):
        if frame := _FRAME.match(line):
            dimmed = is_library(frame["file"])
        elif not line.lstrip(" |").startswith("^") and not line.startswith("    "):
            dimmed = False
        yield "    " + painted("2", one_line(line), colours=colours and dimmed)


def painted(colour: str, text: str, *, colours: bool) -> str:
    """Return ``text`` in an ANSI colour, such as "31", if ``colours`` is set."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colours else text
