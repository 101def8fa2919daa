"""What commands print: text that cannot drive a terminal, tables, bars over time, and progress on stderr."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from asgi_closecodes.logs.formatters import painted
from asgi_closecodes.logs.redaction import one_line

COLOUR = re.compile(r"\x1b\[[\d;]*m")
"""An ANSI escape sequence that sets a colour."""

_BARS = " ▁▂▃▄▅▆▇█"
_ASCII_BARS = " .:-=+*%@"
_UNNOTICED = 1.0
"""Seconds that a command may take before it shows its progress."""
_WIDE = 100_000


def has_colours() -> bool:
    """Whether stdout is a terminal that shows colours, and they are wanted (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write(*lines: str) -> None:
    """Print lines to stdout."""
    _write(sys.stdout, lines)


def write_list(start: str, name: str, items: Iterable[str]) -> None:
    """Print the JSON object ``start`` with a list of that ``name`` at its end, one item after the other."""
    sys.stdout.write(f'{start[:-1]}, "{name}": [')
    for number, item in enumerate(items):
        sys.stdout.write(f", {item}" if number else item)
    sys.stdout.write("]}\n")


def complain(*lines: str) -> None:
    """Print lines to stderr, each with the name of the command, and with nothing that drives the terminal."""
    _write(sys.stderr, (f"asgi-closecodes: {one_line(line)}" for line in lines))


def _write(stream: TextIO, lines: Iterable[str]) -> None:
    encoding = stream.encoding or "utf-8"
    # What the encoding cannot express is escaped.
    stream.writelines(line.encode(encoding, "backslashreplace").decode(encoding) + "\n" for line in lines)


def render(renderable: RenderableType) -> None:
    """Print a table or a text of rich, as wide as it likes where no terminal limits it."""
    terminal = sys.stdout.isatty()
    console = Console(
        file=io.StringIO(),
        force_terminal=terminal,
        color_system="auto" if has_colours() else None,
        width=None if terminal else _WIDE,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as captured:
        console.print(renderable)
    write(*(line.rstrip() for line in captured.get().splitlines()))


def table(*columns: str, rows: Iterable[Sequence[str]]) -> Table:
    """Return a table without lines; a column whose name begins with ">" is one of numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(safe, row))
    return made


def printable(text: str) -> str:
    """Return ``text`` without the colours it came with, and with everything else escaped that drives a terminal."""
    return one_line(COLOUR.sub("", text))


def styled(style: str, text: str) -> str:
    """Return ``text`` in an ANSI style, such as "31" for red, where stdout has colours."""
    return painted(style, text, colours=has_colours())


def plural(count: int, what: str) -> str:
    """Return how many of something there are."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def safe(text: object, style: str = "") -> Text:
    """Return ``text`` as one line that does nothing to a terminal, and that rich takes literally."""
    return Text(one_line(str(text)), style=style)


def bars(counts: Sequence[int]) -> str:
    """Return one character a count: a column whose height is the count's share of the largest."""
    try:
        _BARS.encode(sys.stdout.encoding or "utf-8")
        levels = _BARS
    except UnicodeEncodeError:
        levels = _ASCII_BARS
    most = max(counts, default=0)
    return "".join(levels[-(-count * (len(levels) - 1) // most)] if most else " " for count in counts)


def at(moment: float | None, *, precise: bool = False) -> str:
    """Return a time of this place for people."""
    if moment is None:
        return "unknown time"
    text = dt.datetime.fromtimestamp(moment, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")
    return text[:-3] if precise else text[:-7]


def between(first: float, last: float) -> str:
    """Return a stretch of time for people."""
    if first > last:
        return "at unknown times"
    start, end = at(first), at(last)
    if start == end:
        return start
    return f"{start} to {end[11:] if start[:10] == end[:10] else end}"


def iso(moment: float) -> str | None:
    """Return a time for machines, or None if it is infinitely far away."""
    if math.isinf(moment):
        return None
    return dt.datetime.fromtimestamp(moment, dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def stretch(seconds: int) -> str:
    """Return a duration for people."""
    for unit, name in ((86_400, "day"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            count = seconds // unit
            return f"{count} {name}{'s' if name == 'day' and count > 1 else ''}"
    return f"{seconds} s"


@contextlib.contextmanager
def progress(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show on stderr, if that is a terminal, how much of ``size`` was read, once it takes noticeably long."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _: None
        return
    columns = TextColumn(what), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    shown_from = time.monotonic() + _UNNOTICED
    task = bar.add_task(what, total=None)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if time.monotonic() > shown_from:
            bar.start()
            bar.update(task, completed=done, total=max(size, done))

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


@contextlib.contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Show on stderr, if that is a terminal, what is being done."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _: None
        return
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("")
        yield lambda what: shown.update(task, description=one_line(what))
