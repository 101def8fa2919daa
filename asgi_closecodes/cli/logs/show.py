"""``asgi-closecodes logs show``: the error with a ref, and its session."""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple, TypeAlias

import click

from asgi_closecodes.cli.output import at, has_colours, plural, printable, styled, write
from asgi_closecodes.error_identity import as_error_id, time_of
from asgi_closecodes.logs.formatters import trace_lines

from .aggregate import error_text
from .follow import MAX_KEPT_BYTES
from .reader import Log
from .reading import file_arguments, finish, open_log, reading
from .record import Record, cut, dumps, record_line

_CORRELATION_KEYS = (("closecodes.session.id",), ("trace_id", "otelTraceID", "trace.id"), ("correlation_id",))
"""Keys shared by the records of a session, with their alternative names."""
_MAX_TEXT_LINES = 1000
"""Lines shown of a text log."""
_MAX_LINE_CHARS = 4096
"""Characters shown of a line."""
_RECORD_OVERHEAD_BYTES = 4096
"""Memory of a record in addition to its texts."""
_MAX_HINTS = 20
_Position: TypeAlias = tuple[float, int, int]
"""Position of a record in the log: time, number of its file, number in the file."""
_MAX_SUMMARY_DELAY_S = 60.0
"""Maximum time until the count of a suppressed error is written, with a margin."""

_PREFIX = r"(?:[\w.-]+ *\| ?)?"
_INDENTED = re.compile(_PREFIX + r"(?:\s+\S|\s*$)")
_OF_A_TRACE = re.compile(_PREFIX + r"(?:Traceback |During handling |The above exception )")
_RAISED = re.compile(_PREFIX + r"[^\W\d][\w.]*(?::|$)")


@click.command()
@click.argument("ref")
@file_arguments
@click.option(
    *("-C", "--context"),
    metavar="LINES",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="Lines of its session before and after it.",
)
def show(ref: str, files: tuple[str, ...], *, as_json: bool, context: int) -> None:
    """Print the error with REF, and its session.

    REF is from the close reason: D216BE3DZX4Y, or all of "internal error; ref=D216BE3DZX4Y". Records with the same
    trace_id or correlation_id belong to its session too.
    """
    error_id = as_error_id(ref)
    if not error_id:
        raise click.BadParameter("REF is empty; give the text after ref= in the close reason", param_hint="REF")
    log = open_log(files, twice=True)
    session = _Session([], [], 0)
    text: list[str] = []
    hints: list[str] = []
    with reading(log):
        error, is_mentioned = _find(log, error_id)
        if error is not None:
            session = _session_of(error, log, context)
        elif is_mentioned:
            text = list(itertools.islice(_text_around(error_id, log), _MAX_TEXT_LINES))
        else:
            hints = list(_hints(error_id, log))
    if as_json:
        records = [*session.before, *([error] if error else []), *session.after]
        write(dumps({"error": error and error.raw, "session": [record.raw for record in records], "text": text}))
    elif error is not None:
        _print(error, session)
    else:
        write(*map(printable, text))
    finish(
        log,
        found=error is not None or bool(text),
        nothing=f"no error {error_id if time_of(error_id) else ref}",
        hints=hints,
    )


class _Session(NamedTuple):
    """Records of a session around an error."""

    before: list[Record]
    after: list[Record]
    left_out: int
    """Number of records before ``before``."""


def _find(log: Log, error_id: str) -> tuple[Record | None, bool]:
    """Return the record of the error, and whether any line mentions it."""
    is_mentioned = False
    for file, line in log.matching(error_id.encode("utf-8", "surrogateescape")):
        is_mentioned = True
        record = Record.parse(line, file)
        if record is not None and record.error_id.upper() == error_id:
            return record.shortened(), True
    return None, is_mentioned


def _session_of(error: Record, log: Log, context: int) -> _Session:
    ties = [(names, value) for names in _CORRELATION_KEYS if (value := error.text(*names))]
    # Not ASCII: the file may encode it in several ways.
    needles = [value.encode() for _, value in ties if value.isascii()]
    before, after = _Nearest(context), _Nearest(context)
    if not (needles and context):
        return _Session([], [], 0)
    error_at: _Position | None = None  # of the error; its own file is read first
    for number, file in sorted(enumerate(log.files), key=lambda one: one[1].name != error.file):
        time = -math.inf
        for position, record in enumerate(log.records_of(file, *needles)):
            if record.time is not None:  # records without a time keep their order
                time = max(time, record.time)
            at = time, number, position
            if record.error_id == error.error_id:
                error_at = error_at or at
            elif not any(record.text(*names) == value for names, value in ties):
                continue
            elif error_at is None or at < error_at:
                before.add(at, record)
            else:
                after.add((-time, -number, -position), record)
    return _Session(before.records(), after.records()[::-1], before.left_out)


class _Nearest:
    """Records nearest to the error, bounded by count and memory."""

    def __init__(self, count: int) -> None:
        self.left_out = 0
        self._count = count
        self._kept: list[tuple[_Position, int, Record]] = []
        self._size = 0

    def add(self, at: _Position, record: Record) -> None:
        """Keep ``record``, shortened if long, unless the buffer has nearer ones."""
        if len(self._kept) >= self._count and at < self._kept[0][0]:
            self.left_out += 1
            return
        short = record.shortened()
        size = short.size() + _RECORD_OVERHEAD_BYTES
        bisect.insort(self._kept, (at, size, short), key=itemgetter(0))
        self._size += size
        while len(self._kept) > self._count or self._size > MAX_KEPT_BYTES // 2:
            self._size -= self._kept.pop(0)[1]
            self.left_out += 1

    def records(self) -> list[Record]:
        """Return the records in order."""
        return [record for _, _, record in self._kept]


def _print(error: Record, session: _Session) -> None:
    text = error.text
    duration, received, sent = (
        text(f"closecodes.session.{key}") for key in ("duration", "messages.received", "messages.sent")
    )
    course = f", {duration} s old; messages: {received} received, {sent} sent" if duration else ""
    phase = text("closecodes.error.phase")
    suppressed = f", {error.suppressed} suppressed before this one" if error.suppressed else ""
    facts = {
        "time": at(error.time, precise=True),
        "route": text("http.route"),
        "path": text("url.path"),
        "session": f"{error.session}{phase and f', {phase}'}{course}",
        "client": ":".join(filter(None, (text("client.address"), text("client.port")))),
        "close": f"{text('websocket.close.code')} {text('websocket.close.reason')}"
        + (", could not be sent" if error.keys.get("websocket.close.sent") is False else ""),
        "process": text("process.pid"),
        "trace": text(*_CORRELATION_KEYS[1]),
        "correlation": text(*_CORRELATION_KEYS[2]),
        "fingerprint": text("closecodes.error.fingerprint") + suppressed,
        "file": error.file,
    }
    write(styled("1;31", printable(error.message)), "")
    write(*(f"  {styled('2', f'{name:<11}')}  {printable(fact)}" for name, fact in facts.items() if fact.strip()))
    if error.trace:
        write("", *trace_lines(error.trace, colours=has_colours()))
    lines = [*session.before, *session.after]
    if lines:
        before = f", and {session.left_out} before them" if session.left_out else ""
        write("", styled("1", f"{plural(len(lines), 'other line')} of this session{before}"), "")
        write(*("  " + record_line(record) for record in session.before))
        write("> " + record_line(error))
        write(*("  " + record_line(record) for record in session.after))


def _text_around(error_id: str, log: Log) -> Iterator[str]:
    """Yield the lines of a text log that mention an error, each with its stack trace."""
    is_trace = may_go_on = False
    for _, line in log.matching():
        text = cut(line[: 4 * _MAX_LINE_CHARS].decode("utf-8", "replace").rstrip("\r"), _MAX_LINE_CHARS)
        if error_id.encode("utf-8", "surrogateescape") in line:
            is_trace = may_go_on = True
            yield text
        elif is_trace and (_INDENTED.match(text) or _OF_A_TRACE.match(text)):
            may_go_on = True
            yield text
        elif is_trace and may_go_on and _RAISED.match(text):
            may_go_on = False  # the last line of a trace, unless another one follows
            yield text
        else:
            is_trace = False


def _hints(error_id: str, log: Log) -> Iterator[str]:
    """Yield hints about an error that no line mentions."""
    happened = time_of(error_id)
    if happened is None:
        yield "a ref has 12 digits and letters, as D216BE3DZX4Y"
        return
    yield f"that error happened at {at(happened, precise=True)}"
    counted: dict[str, Record] = {}
    for record in log.records(b"closecodes.error.suppressed"):
        time = record.time or 0.0
        if record.suppressed and record.is_error and happened <= time < happened + _MAX_SUMMARY_DELAY_S:
            key = cut(record.text("closecodes.error.fingerprint") or record.summary_of, _MAX_LINE_CHARS)
            if key not in counted and len(counted) < _MAX_HINTS:
                counted[key] = record.shortened()
    for record in counted.values():
        kind = cut(error_text(record) if record.is_summary else record.message, _MAX_LINE_CHARS)
        yield (
            f"it may be one of {record.suppressed} suppressed errors until {at(record.time, precise=True)}, as: {kind}"
        )
