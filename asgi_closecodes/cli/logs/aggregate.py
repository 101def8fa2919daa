"""Sums of a log over time: errors by kind, closes by code, refusals by gate and cause.

Suppressed records count too. Memory is bounded by kinds and columns, not by the size of the log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from asgi_closecodes import events
from asgi_closecodes.cli.output import iso
from asgi_closecodes.exceptions import TooManyMessages

from .record import Frame, Record, cut

MAX_KINDS = 4096
"""Kinds counted separately; all others are one more."""
MAX_ROUTES = 16
MAX_SESSIONS = 16_384

_NUMBER = re.compile(r"\d+")

MAX_COLUMNS = 40
"""Columns of a timeline."""
# Each is a multiple of the one before: columns merge without loss.
_COLUMN_WIDTHS_S = (
    1,
    5,
    15,
    60,
    300,
    900,
    3600,
    4 * 3600,
    12 * 3600,
    86_400,
    7 * 86_400,
    28 * 86_400,
    364 * 86_400,
    10 * 364 * 86_400,
)


class Timeline:
    """Counts in columns of time, which widen as the covered time grows."""

    def __init__(self) -> None:
        self.first = math.inf
        self.last = -math.inf
        self._widths = iter(_COLUMN_WIDTHS_S)
        self.width: int = next(self._widths)
        self._series: list[dict[int, int]] = []

    def series(self) -> dict[int, int]:
        """Add and return a new series."""
        self._series.append({})
        return self._series[-1]

    def add(self, series: dict[int, int], time: float, count: int) -> None:
        """Add ``count`` to ``series`` at ``time``."""
        if not self.first <= time <= self.last:
            self.first = min(time, self.first)
            self.last = max(time, self.last)
            while self._column(self.last) - self._column(self.first) >= MAX_COLUMNS:
                self._widen()
        column = self._column(time)
        series[column] = series.get(column, 0) + count

    def counts(self, series: dict[int, int]) -> list[int]:
        """Return the counts of ``series`` for all columns of the timeline."""
        if self.first > self.last:
            return []
        return [series.get(column, 0) for column in range(self._column(self.first), self._column(self.last) + 1)]

    def _column(self, time: float) -> int:
        return int(time // self.width)

    def _widen(self) -> None:
        before, self.width = self.width, next(self._widths)
        for series in self._series:
            narrow = series.copy()
            series.clear()
            for column, count in narrow.items():
                wide = column * before // self.width
                series[wide] = series.get(wide, 0) + count


@dataclass(slots=True)
class Aggregate:
    """Counts of one kind, and their times."""

    over_time: dict[int, int]
    written: int = 0
    suppressed: int = 0
    first: float = math.inf
    last: float = -math.inf

    @property
    def count(self) -> int:
        """Written and suppressed records."""
        return self.written + self.suppressed

    def add(self, record: Record, timeline: Timeline) -> None:
        """Count ``record`` and the suppressed ones that it reports."""
        written = 0 if record.is_summary else 1
        suppressed = record.suppressed
        self.written += written
        self.suppressed += suppressed
        if (time := record.time) is not None:
            self.first = min(time, self.first)
            self.last = max(time, self.last)
            timeline.add(self.over_time, time, written + suppressed)

    def as_json(self) -> dict[str, object]:
        """Return the counts and times for JSON output."""
        return {
            "count": self.count,
            "written": self.written,
            "suppressed": self.suppressed,
            "first": iso(self.first),
            "last": iso(self.last),
        }


def total(aggregates: Iterable[Aggregate]) -> Aggregate:
    """Return the sum of ``aggregates``, without their timelines."""
    summed = Aggregate({})
    for aggregate in aggregates:
        summed.written += aggregate.written
        summed.suppressed += aggregate.suppressed
        summed.first = min(aggregate.first, summed.first)
        summed.last = max(aggregate.last, summed.last)
    return summed


@dataclass(slots=True)
class ErrorKind(Aggregate):
    """Errors of one fingerprint, or of one key of :func:`_key_of`."""

    fingerprint: str = ""
    event: str = ""
    routes: dict[str, int] = field(default_factory=dict)
    """Count by route."""
    error_type: str = ""
    message: str = ""
    """Message of the last exception, else of its record."""
    frame: Frame | None = None
    """Frame that raised the last of them."""
    ref: str = ""
    """Last error id."""
    session: str = ""


class Errors:
    """Errors of a log by kind."""

    NEEDLES = (
        *(b'"error"', b'"ERROR"', b'"critical"', b'"CRITICAL"'),
        *(b"closecodes.error", b'"exception', b'"exc_info"'),  # if the log has no levels
    )
    """Every relevant line contains one of these."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.kinds: dict[Hashable, ErrorKind] = {}

    def add(self, record: Record) -> None:
        """Count ``record`` if it is an error."""
        if not record.is_error:
            return
        key = _key_of(record)
        if key not in self.kinds and len(self.kinds) >= MAX_KINDS:
            key = None
        if (kind := self.kinds.get(key)) is None:
            kind = self.kinds[key] = ErrorKind(self.timeline.series())
            kind.fingerprint = "" if key is None else _short(record.text("closecodes.error.fingerprint"))
            kind.event = _short(record.summary_of or record.event)
            kind.message = "other kinds" if key is None else _short(error_text(record))
        kind.add(record, self.timeline)
        if key is None or record.is_summary:
            return
        kind.error_type = _short(record.error_type)
        kind.message = _short(error_text(record))
        kind.frame = record.frame
        kind.ref = _short(record.error_id) or kind.ref
        kind.session = _short(record.session)
        route = _short(record.text("http.route", "url.path"))
        if route and (route in kind.routes or len(kind.routes) < MAX_ROUTES):
            kind.routes[route] = kind.routes.get(route, 0) + 1 + record.suppressed


def _key_of(record: Record) -> Hashable:
    if fingerprint := record.text("closecodes.error.fingerprint"):
        return _short(fingerprint)
    event = record.summary_of or record.event
    if event.startswith("closecodes."):  # keys that its summary has too
        return _short(event), *(_short(record.text(key)) for key in ("closecodes.gate.name", "closecodes.callback"))
    if (frame := record.frame) is not None:
        return record.error_type[:200], frame.file[:200], frame.function[:200]
    return _short(record.logger), record.error_type[:200], _NUMBER.sub("0", record.message[:200])


def error_text(record: Record) -> str:
    """Return the message of an error, or of the first one that a summary counts."""
    if record.is_summary:
        return record.message.partition(": ")[2]
    return record.text("exception.message", "error.message") or record.message


@dataclass(slots=True)
class StallKind(Aggregate):
    """Stalls of one fingerprint."""

    fingerprint: str = ""
    seconds: float = 0.0
    """Duration of all written ones."""
    longest: float = 0.0
    routes: dict[str, int] = field(default_factory=dict)
    """Count by route."""
    message: str = ""
    """Message of the last record, or of the first that a summary counts."""
    frame: Frame | None = None
    """Innermost frame of the application in the last of them, else of a library."""
    session: str = ""


class Stalls:
    """Stalls of the event loop in a log by kind."""

    NEEDLES = (b"closecodes.loop.stalled",)
    """Every relevant line contains this."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.kinds: dict[str | None, StallKind] = {}

    def add(self, record: Record) -> None:
        """Count ``record`` if it is a stall."""
        if (record.summary_of or record.event) != events.LoopStalled.event_name:
            return
        key: str | None = _short(record.text("closecodes.stall.fingerprint"))
        if key not in self.kinds and len(self.kinds) >= MAX_KINDS:
            key = None
        if (kind := self.kinds.get(key)) is None:
            kind = self.kinds[key] = StallKind(self.timeline.series(), fingerprint=key or "")
            kind.message = "other kinds" if key is None else _short(error_text(record))
        kind.add(record, self.timeline)
        if record.is_summary:
            return
        seconds = record.stalled
        kind.seconds += seconds
        kind.longest = max(kind.longest, seconds)
        if key is None:
            return
        kind.message, kind.frame = _short(record.message), record.stalled_at
        kind.session = _short(record.session) or kind.session
        route = _short(record.text("http.route", "url.path"))
        if route and (route in kind.routes or len(kind.routes) < MAX_ROUTES):
            kind.routes[route] = kind.routes.get(route, 0) + 1 + record.suppressed


def most_frequent(counts: dict[str, int]) -> str:
    """Return the key with the highest count."""
    return max(counts, key=lambda key: counts[key])


def _short(text: str) -> str:
    return cut(text, 200)


Code: TypeAlias = int | Literal["http", "unknown"]
"""Close code; ``http`` if an HTTP response ended the session."""


class Closes:
    """Closes of a log by code, and refusals by gate, cause and outcome.

    A process that logs ``closecodes.session.closed`` (level DEBUG) is complete: it logs every admitted session. The
    others log only closes of errors, refusals and shed sessions.
    """

    NEEDLES = (b"closecodes",)
    """Every relevant line contains this."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.codes: dict[Code, Aggregate] = {}
        self.by_client: dict[Code, int] = {}
        """Closes that the client began, by its code; known only of processes that are complete."""
        self.unsent: dict[Code, int] = {}
        """Closes that the server did not accept."""
        self.refusals: dict[tuple[str, str, str], Aggregate] = {}
        """By gate, cause and outcome: ``refused``, ``shadow`` (would have been refused) or ``shed``."""
        self._complete_processes: set[str] = set()
        self._counted_sessions: dict[str, None] = {}

    @property
    def is_of_all_sessions(self) -> bool:
        """Whether sessions without problems were logged too."""
        return bool(self._complete_processes)

    def add(self, record: Record) -> None:
        """Count ``record`` if it is about a close or a refusal."""
        process = _short(record.text("process.pid"))
        match record.summary_of or record.event:
            case events.SessionOpened.event_name:
                self._note_complete(process)
            case events.SessionClosed.event_name:
                self._note_complete(process)
                if record.session not in self._counted_sessions:
                    self._add_close(record)
            case events.SessionFailed.event_name:
                self._add_close_unless_complete(record, process)
            case events.SessionShed.event_name:
                self._add_close_unless_complete(record, process)
                self._add_refusal(record, "", "shed")
            case events.SessionRefused.event_name:
                gate = record.text("closecodes.gate.name")
                is_shadow = record.text("closecodes.refusal.mode") == "shadow"
                if gate == TooManyMessages.gate and not is_shadow:
                    self._add_close_unless_complete(record, process)  # it was admitted long before
                elif not is_shadow:
                    self._add_close(record)
                self._add_refusal(record, gate, "shadow" if is_shadow else "refused")
            case events.CloseFailed.event_name:
                code = _code_of(record)
                self.unsent[code] = self.unsent.get(code, 0) + (not record.is_summary) + record.suppressed

    def _note_complete(self, process: str) -> None:
        if len(self._complete_processes) < MAX_KINDS:
            self._complete_processes.add(process)

    def _add_close_unless_complete(self, record: Record, process: str) -> None:
        if process in self._complete_processes:
            return
        self._add_close(record)
        if record.session:  # its session.closed record may come later
            self._counted_sessions[record.session[:64]] = None
            if len(self._counted_sessions) > MAX_SESSIONS:
                del self._counted_sessions[next(iter(self._counted_sessions))]

    def _add_close(self, record: Record) -> None:
        code = _code_of(record)
        if code not in self.codes and len(self.codes) >= MAX_KINDS:
            code = "unknown"
        if (aggregate := self.codes.get(code)) is None:
            aggregate = self.codes[code] = Aggregate(self.timeline.series())
        aggregate.add(record, self.timeline)
        if record.text("closecodes.session.closed_by") == "client":
            self.by_client[code] = self.by_client.get(code, 0) + 1

    def _add_refusal(self, record: Record, gate: str, outcome: str) -> None:
        key = _short(gate), _short(record.text("closecodes.gate.cause")), outcome
        if key not in self.refusals and len(self.refusals) >= MAX_KINDS:
            key = "", "", outcome
        if (aggregate := self.refusals.get(key)) is None:
            aggregate = self.refusals[key] = Aggregate(self.timeline.series())
        aggregate.add(record, self.timeline)


def _code_of(record: Record) -> Code:
    if record.text("closecodes.refusal.mode") == "http":
        return "http"
    if record.code is not None:
        return record.code
    is_known = (
        record.event == events.SessionClosed.event_name and record.text("closecodes.session.closed_by") != "client"
    )
    return "http" if is_known else "unknown"
