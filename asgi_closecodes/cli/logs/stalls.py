"""``asgi-closecodes logs stalls``: what blocked the event loop, with counts and durations."""

from __future__ import annotations

from collections.abc import Iterator

import click

from asgi_closecodes.cli.output import bars, between, plural, printable, styled, write, write_list

from .aggregate import StallKind, Stalls, most_frequent, total
from .reading import file_arguments, finish, in_period, open_log, period_options, reading, records_between
from .record import dumps
from .sums import headline


@click.command()
@file_arguments
@period_options
def stalls(files: tuple[str, ...], *, as_json: bool, since: float | None, until: float | None) -> None:
    """Group stalls of the event loop by fingerprint.

    Those that took the most time come first. Counts include suppressed records, times do not. The setting log_stalls
    has stalls logged.
    """
    found = Stalls()
    log = open_log(files)
    with reading(log):
        for record in records_between(log, since, until, *Stalls.NEEDLES):
            found.add(record)
    kinds = sorted(found.kinds.values(), key=lambda kind: (-kind.seconds, -kind.count))
    if as_json:
        summed = {**total(kinds).as_json(), "column_seconds": found.timeline.width}
        write_list(dumps(summed), "stalls", (dumps(_described(kind, found)) for kind in kinds))
    elif kinds:
        write(headline("stall", total(kinds), found.timeline), "")
        width = max(len(str(kind.count)) for kind in kinds)
        for kind in kinds:
            write(*_lines(kind, found, width))
    finish(log, found=bool(kinds), nothing=f"no stalls{in_period(since, until)}")


def _described(kind: StallKind, among: Stalls) -> dict[str, object]:
    return {
        "fingerprint": kind.fingerprint or None,
        "message": kind.message,
        **kind.as_json(),
        "total_seconds": round(kind.seconds, 3),
        "longest_seconds": round(kind.longest, 3),
        "routes": kind.routes,
        "frame": kind.frame and {"file": kind.frame.file, "line": kind.frame.line, "function": kind.frame.function},
        "session": kind.session or None,
        "over_time": among.timeline.counts(kind.over_time),
    }


def _lines(kind: StallKind, among: Stalls, width: int) -> Iterator[str]:
    title = str(kind.frame) if kind.frame else kind.message
    yield f"{styled('1', f'{kind.count:>{width}}')}  {styled('33', printable(title))}"
    for line in _about(kind, bars(among.timeline.counts(kind.over_time))):
        yield f"{'':>{width}}  {printable(line)}"
    yield ""


def _about(kind: StallKind, over_time: str) -> Iterator[str]:
    yield f"{kind.seconds:.2f} s in all, {kind.longest:.2f} s the longest"
    if kind.routes:
        others = len(kind.routes) - 1
        yield f"route {most_frequent(kind.routes)}" + (f" and {plural(others, 'other')}" if others else "")
    counted = f", {kind.suppressed} of them suppressed" if kind.suppressed else ""
    yield f"{between(kind.first, kind.last)}{counted}"
    if over_time.strip():
        yield over_time
    known = {"fingerprint": kind.fingerprint, "session": kind.session}
    if line := "  ".join(f"{name} {value}" for name, value in known.items() if value):
        yield line
