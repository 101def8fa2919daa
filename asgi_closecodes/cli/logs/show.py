"""``asgi-closecodes logs show``: the error that a client reported."""

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

from .aggregate import said
from .follow import MOST_BYTES
from .reader import Log
from .reading import end, log_of, of_files, reading
from .record import Record, cut, dumps, record_line

_TIES = (("closecodes.session.id",), ("trace_id", "otelTraceID", "trace.id"), ("correlation_id",))
"""Keys that records of one session have in common; each under its several names."""
_MOST_LINES = 1000
"""Lines of a log that is text."""
_LONGEST_LINE = 4096
"""Characters of one of them."""
_RECORD_COSTS = 4096
"""Bytes that a record takes beside its texts."""
_MOST_HINTS = 20
_Place: TypeAlias = tuple[float, int, int]
"""Of a record among all: its time, and the numbers of its file and of itself there."""
_SUMMED_UP_AFTER = 60.0
"""Seconds after which an error that was counted instead of written is part of some record, and some to spare."""

_PREFIX = r"(?:[\w.-]+ *\| ?)?"
_INDENTED = re.compile(_PREFIX + r"(?:\s+\S|\s*$)")
_OF_A_TRACE = re.compile(_PREFIX + r"(?:Traceback |During handling |The above exception )")
_RAISED = re.compile(_PREFIX + r"[^\W\d][\w.]*(?::|$)")


@click.command()
@click.argument("ref")
@of_files
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

    REF is what the client was told: D216BE3DZX4Y, or all of "internal error; ref=D216BE3DZX4Y". Records that share its
    trace_id or correlation_id belong to its session too.
    """
    error_id = as_error_id(ref)
    if not error_id:
        raise click.BadParameter("it is empty; give what follows ref= in the close reason", param_hint="REF")
    log = log_of(files, twice=True)
    session = _Session([], [], 0)
    text: list[str] = []
    hints: list[str] = []
    with reading(log):
        error, is_mentioned = _find(log, error_id)
        if error is not None:
            session = _session_of(error, log, context)
        elif is_mentioned:
            text = list(itertools.islice(_text_around(error_id, log), _MOST_LINES))
        else:
            hints = list(_hints(error_id, log))
    if as_json:
        records = [*session.before, *([error] if error else []), *session.after]
        write(dumps({"error": error and error.raw, "session": [record.raw for record in records], "text": text}))
    elif error is not None:
        _print(error, session)
    else:
        write(*map(printable, text))
    end(
        log,
        found=error is not None or bool(text),
        nothing=f"no error {error_id if time_of(error_id) else ref}",
        hints=hints,
    )


class _Session(NamedTuple):
    """The records of a session around an error."""

    before: list[Record]
    after: list[Record]
    left_out: int
    """Those before ``before``."""


def _find(log: Log, error_id: str) -> tuple[Record | None, bool]:
    """Return the record of the error, and whether other lines mention it."""
    is_mentioned = False
    for file, line in log.matching(error_id.encode("utf-8", "surrogateescape")):
        is_mentioned = True
        record = Record.parse(line, file)
        if record is not None and record.error_id.upper() == error_id:
            return record.shortened(), True
    return None, is_mentioned


def _session_of(error: Record, log: Log, context: int) -> _Session:
    ties = [(names, value) for names in _TIES if (value := error.text(*names))]
    # What is not ASCII stands in the file in one of several ways.
    needles = [value.encode() for _, value in ties if value.isascii()]
    before, after = _Nearest(context), _Nearest(context)
    if not (needles and context):
        return _Session([], [], 0)
    place: _Place | None = None  # of the error; in its own file all that comes first is before it
    for number, file in sorted(enumerate(log.files), key=lambda one: one[1].name != error.file):
        time = -math.inf
        for position, record in enumerate(log.records_of(file, *needles)):
            if record.time is not None:  # without a time it stays where it is
                time = max(time, record.time)
            at = time, number, position
            if record.error_id == error.error_id:
                place = place or at
            elif not any(record.text(*names) == value for names, value in ties):
                continue
            elif place is None or at < place:
                before.add(at, record)
            else:
                after.add((-time, -number, -position), record)
    return _Session(before.records(), after.records()[::-1], before.left_out)


class _Nearest:
    """The records of the highest places, as many as were asked for and memory is meant to hold."""

    def __init__(self, count: int) -> None:
        self.left_out = 0
        self._count = count
        self._kept: list[tuple[_Place, int, Record]] = []
        self._size = 0

    def add(self, place: _Place, record: Record) -> None:
        """Keep ``record``, shortened if it is long, unless others are nearer."""
        if len(self._kept) >= self._count and place < self._kept[0][0]:
            self.left_out += 1
            return
        short = record.shortened()
        size = short.size() + _RECORD_COSTS
        bisect.insort(self._kept, (place, size, short), key=itemgetter(0))
        self._size += size
        while len(self._kept) > self._count or self._size > MOST_BYTES // 2:
            self._size -= self._kept.pop(0)[1]
            self.left_out += 1

    def records(self) -> list[Record]:
        """Return them by their places."""
        return [record for _, _, record in self._kept]


def _print(error: Record, session: _Session) -> None:
    text = error.text
    duration, received, sent = (
        text(f"closecodes.session.{key}") for key in ("duration", "messages.received", "messages.sent")
    )
    course = f", {duration} s old; messages: {received} received, {sent} sent" if duration else ""
    phase = text("closecodes.error.phase")
    suppressed = f", {error.suppressed} more of it counted before this one" if error.suppressed else ""
    facts = {
        "time": at(error.time, precise=True),
        "route": text("http.route"),
        "path": text("url.path"),
        "session": f"{error.session}{phase and f', {phase}'}{course}",
        "client": ":".join(filter(None, (text("client.address"), text("client.port")))),
        "close": f"{text('websocket.close.code')} {text('websocket.close.reason')}"
        + (", could not be sent" if error.keys.get("websocket.close.sent") is False else ""),
        "process": text("process.pid"),
        "trace": text(*_TIES[1]),
        "correlation": text(*_TIES[2]),
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
    """Yield the lines that mention an error, each with the stack trace below it, of a log that is not JSON."""
    is_trace = may_go_on = False
    for _, line in log.matching():
        text = cut(line[: 4 * _LONGEST_LINE].decode("utf-8", "replace").rstrip("\r"), _LONGEST_LINE)
        if error_id.encode("utf-8", "surrogateescape") in line:
            is_trace = may_go_on = True
            yield text
        elif is_trace and (_INDENTED.match(text) or _OF_A_TRACE.match(text)):
            may_go_on = True
            yield text
        elif is_trace and may_go_on and _RAISED.match(text):
            may_go_on = False  # the exception itself, the last line unless it came out of another
            yield text
        else:
            is_trace = False


def _hints(error_id: str, log: Log) -> Iterator[str]:
    """Yield what else is known of an error that is in no line."""
    happened = time_of(error_id)
    if happened is None:
        yield "a ref has 12 digits and letters, as D216BE3DZX4Y"
        return
    yield f"that error happened at {at(happened, precise=True)}"
    counted: dict[str, Record] = {}
    for record in log.records(b"closecodes.error.suppressed"):
        time = record.time or 0.0
        if record.suppressed and record.is_error and happened <= time < happened + _SUMMED_UP_AFTER:
            key = cut(record.text("closecodes.error.fingerprint") or record.summary_of, _LONGEST_LINE)
            if key not in counted and len(counted) < _MOST_HINTS:
                counted[key] = record.shortened()
    for record in counted.values():
        kind = cut(said(record) if record.is_summary else record.message, _LONGEST_LINE)
        yield (
            f"it may be one of {record.suppressed} that were counted, not written, "
            f"until {at(record.time, precise=True)}; all are as: {kind}"
        )
