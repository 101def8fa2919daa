"""``asgi-closecodes logs errors``: errors by fingerprint, with counts and times."""

from __future__ import annotations

from collections.abc import Iterator

import click

from asgi_closecodes.cli.output import bars, between, plural, printable, styled, write, write_list

from .aggregate import ErrorKind, Errors, most_frequent, total
from .reading import file_arguments, finish, in_period, open_log, period_options, reading, records_between
from .record import dumps
from .sums import headline


@click.command()
@file_arguments
@period_options
def errors(files: tuple[str, ...], *, as_json: bool, since: float | None, until: float | None) -> None:
    """Group errors by fingerprint.

    The most frequent come first. Counts include suppressed records.
    """
    found = Errors()
    log = open_log(files)
    with reading(log):
        for record in records_between(log, since, until, *Errors.NEEDLES):
            found.add(record)
    kinds = sorted(found.kinds.values(), key=lambda kind: -kind.count)
    if as_json:
        summed = {**total(kinds).as_json(), "column_seconds": found.timeline.width}
        write_list(dumps(summed), "errors", (dumps(_described(kind, found)) for kind in kinds))
    elif kinds:
        write(headline("error", total(kinds), found.timeline), "")
        width = len(str(kinds[0].count))
        for kind in kinds:
            write(*_lines(kind, found, width))
    finish(log, found=bool(kinds), nothing=f"no errors{in_period(since, until)}")


def _described(kind: ErrorKind, among: Errors) -> dict[str, object]:
    return {
        "fingerprint": kind.fingerprint or None,
        "event": kind.event or None,
        "type": kind.error_type or None,
        "message": kind.message,
        **kind.as_json(),
        "routes": kind.routes,
        "frame": kind.frame and {"file": kind.frame.file, "line": kind.frame.line, "function": kind.frame.function},
        "ref": kind.ref or None,
        "session": kind.session or None,
        "over_time": among.timeline.counts(kind.over_time),
    }


def _lines(kind: ErrorKind, among: Errors, width: int) -> Iterator[str]:
    title = f"{kind.error_type}: {kind.message}" if kind.error_type else kind.message
    yield f"{styled('1', f'{kind.count:>{width}}')}  {styled('31', printable(title))}"
    for line in _about(kind, bars(among.timeline.counts(kind.over_time))):
        yield f"{'':>{width}}  {printable(line)}"
    yield ""


def _about(kind: ErrorKind, over_time: str) -> Iterator[str]:
    if kind.frame:
        yield str(kind.frame)
    if kind.routes:
        others = len(kind.routes) - 1
        yield f"route {most_frequent(kind.routes)}" + (f" and {plural(others, 'other')}" if others else "")
    counted = f", {kind.suppressed} of them suppressed" if kind.suppressed else ""
    yield f"{between(kind.first, kind.last)}{counted}"
    if over_time.strip():
        yield over_time
    known = {"ref": kind.ref, "fingerprint": kind.fingerprint, "session": "" if kind.ref else kind.session}
    if line := "  ".join(f"{name} {value}" for name, value in known.items() if value):
        yield line
