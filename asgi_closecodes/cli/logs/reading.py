"""Shared parts of the log commands: files, period, exit status."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click

from asgi_closecodes.cli.commands import NOTHING_FOUND, UNUSABLE
from asgi_closecodes.cli.output import plural, progress, write_errors

from .reader import STDIN, Log
from .record import Record

_Body = TypeVar("_Body", bound=Callable[..., Any])

_SWITCHED_ON = (
    "an application writes JSON after asgi_closecodes.logs.configure_logging('json'), or under",
    'uvicorn app:app --log-config "$(python -m asgi_closecodes.logs json)"',
)
_AGO = re.compile(r"(?=\d)" + "".join(rf"(?:(\d{{1,9}}){unit})?" for unit in "wdhms"))
_OF_TODAY = re.compile(r"\d\d:\d\d(:\d\d)?")


def moment(text: str) -> float:
    """Parse ``1h30m`` (ago), ISO 8601 or a time of today; return seconds since 1970."""
    now = dt.datetime.now().astimezone()
    try:
        if ago := _AGO.fullmatch(text):
            weeks, days, hours, minutes, seconds = (int(part or 0) for part in ago.groups())
            passed = dt.timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
            return (now - passed).timestamp()
        return dt.datetime.fromisoformat(f"{now:%Y-%m-%d}T{text}" if _OF_TODAY.fullmatch(text) else text).timestamp()
    except (ValueError, OverflowError):
        forms = "90s, 15m, 1h30m, 2d, 2026-11-24, 2026-11-24T18:30 or 18:30"
        raise click.BadParameter(f"must be a time, as {forms}; not {text!r}") from None


def file_arguments(body: _Body) -> _Body:
    """Add the files and ``--json`` to a command."""
    body = click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(allow_dash=True))(body)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(body)


def period_options(body: _Body) -> _Body:
    """Add ``--since`` and ``--until`` to a command."""
    text = "Only records {} this time: 15m, 1h30m or 2d (ago), 18:30, or ISO 8601."
    for name, what in (("--until", "before"), ("--since", "since")):
        body = click.option(name, type=moment, metavar="WHEN", help=text.format(what))(body)
    return body


def in_period(since: float | None, until: float | None) -> str:
    """Return the suffix of messages that nothing was found in a part of the log."""
    return "" if since is None and until is None else " in that period"


def open_log(files: Sequence[str], *, twice: bool = False) -> Log:
    """Return the log in ``files``, or in standard input without any."""
    if not files:
        if sys.stdin is None or sys.stdin.isatty():
            command = click.get_current_context().command_path
            raise click.UsageError(f"name a log file, or pipe a log in: docker compose logs | {command}")
        files = (STDIN,)
    return Log(files, twice=twice)


@contextlib.contextmanager
def reading(log: Log) -> Iterator[Log]:
    """Show progress while ``log`` is read, and close it afterwards."""
    with contextlib.closing(log), progress("reading", log.size * (2 if log.twice else 1)) as log.progress:
        yield log


def records_between(log: Log, since: float | None, until: float | None, *needles: bytes) -> Iterator[Record]:
    """Yield the records with one of ``needles`` that were written in the period."""
    timeless = 0
    for record in log.records(*needles):
        if since is None and until is None:
            yield record
        elif record.time is None:
            timeless += 1
        elif (since is None or since <= record.time) and (until is None or record.time < until):
            yield record
    if timeless:
        log.notes[f"{plural(timeless, 'record')} without a time skipped, because of --since or --until"] = None


def finish(log: Log, *, found: bool, nothing: str, hints: Sequence[str] = ()) -> None:
    """Report unread files and missing results on stderr; exit with the matching status."""
    write_errors(*log.problems, *log.notes)
    if not found and log.files and (log.lines or not log.problems):
        names = log.files[0].name if len(log.files) == 1 else f"{len(log.files)} files"
        if not log.lines and not log.size:
            write_errors(f"{nothing}: {names} {'is' if len(log.files) == 1 else 'are'} empty")
        else:
            json = "" if log.has_json else ", none of them JSON"
            write_errors(f"{nothing} in {names} ({plural(log.lines, 'line')}{json})", *hints)
            if log.lines and not log.has_json:
                write_errors(*_SWITCHED_ON)
    status = UNUSABLE if log.problems else NOTHING_FOUND
    if log.problems or not found:
        click.get_current_context().exit(status)
