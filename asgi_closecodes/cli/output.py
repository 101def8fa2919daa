"""Output of commands: text without terminal control sequences, tables, bars over time, progress on stderr."""

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
_SHOW_PROGRESS_AFTER_S = 1.0
"""Commands that take longer show their progress."""
_UNLIMITED_COLUMNS = 100_000


def has_colours() -> bool:
    """Whether stdout is a terminal with colours, and ``NO_COLOR`` is not set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write(*lines: str) -> None:
    """Print lines to stdout."""
    _write(sys.stdout, lines)


def write_list(start: str, name: str, items: Iterable[str]) -> None:
    """Print the JSON object ``start`` with a final list ``name``, item by item."""
    sys.stdout.write(f'{start[:-1]}, "{name}": [')
    for number, item in enumerate(items):
        sys.stdout.write(f", {item}" if number else item)
    sys.stdout.write("]}\n")


def write_errors(*lines: str) -> None:
    """Print escaped lines to stderr, each prefixed with the name of the command."""
    _write(sys.stderr, (f"asgi-closecodes: {one_line(line)}" for line in lines))


def _write(stream: TextIO, lines: Iterable[str]) -> None:
    encoding = stream.encoding or "utf-8"
    # Characters outside of the encoding are escaped.
    stream.writelines(line.encode(encoding, "backslashreplace").decode(encoding) + "\n" for line in lines)


def render(renderable: RenderableType) -> None:
    """Print a rich table or text; its width is limited only by a terminal."""
    terminal = sys.stdout.isatty()
    console = Console(
        file=io.StringIO(),
        force_terminal=terminal,
        color_system="auto" if has_colours() else None,
        width=None if terminal else _UNLIMITED_COLUMNS,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as captured:
        console.print(renderable)
    write(*(line.rstrip() for line in captured.get().splitlines()))


def table(*columns: str, rows: Iterable[Sequence[str]]) -> Table:
    """Return a table without lines. Columns whose name begins with ">" are right-aligned."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(safe, row))
    return made


def printable(text: str) -> str:
    """Return ``text`` without its colours, and with other control characters escaped."""
    return one_line(COLOUR.sub("", text))


def styled(style: str, text: str) -> str:
    """Return ``text`` in an ANSI style, such as "31" for red, if stdout has colours."""
    return painted(style, text, colours=has_colours())


def plural(count: int, what: str) -> str:
    """Return ``count`` and the noun in singular or plural."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def safe(text: object, style: str = "") -> Text:
    """Return ``text`` as one escaped line, without rich markup."""
    return Text(one_line(str(text)), style=style)


def bars(counts: Sequence[int]) -> str:
    """Return a bar chart, one character a count, relative to the largest count."""
    try:
        _BARS.encode(sys.stdout.encoding or "utf-8")
        levels = _BARS
    except UnicodeEncodeError:
        levels = _ASCII_BARS
    most = max(counts, default=0)
    return "".join(levels[-(-count * (len(levels) - 1) // most)] if most else " " for count in counts)


def at(moment: float | None, *, precise: bool = False) -> str:
    """Return a readable local time."""
    if moment is None:
        return "unknown time"
    text = dt.datetime.fromtimestamp(moment, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")
    return text[:-3] if precise else text[:-7]


def between(first: float, last: float) -> str:
    """Return a readable period."""
    if first > last:
        return "at unknown times"
    start, end = at(first), at(last)
    if start == end:
        return start
    return f"{start} to {end[11:] if start[:10] == end[:10] else end}"


def iso(moment: float) -> str | None:
    """Return a time as ISO 8601, or None if it is infinite."""
    if math.isinf(moment):
        return None
    return dt.datetime.fromtimestamp(moment, dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def format_duration(seconds: int) -> str:
    """Return a readable duration."""
    for unit, name in ((86_400, "day"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            count = seconds // unit
            return f"{count} {name}{'s' if name == 'day' and count > 1 else ''}"
    return f"{seconds} s"


@contextlib.contextmanager
def progress(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show progress on stderr if it is a terminal and reading ``size`` bytes takes long."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _: None
        return
    columns = TextColumn(what), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    show_after = time.monotonic() + _SHOW_PROGRESS_AFTER_S
    task = bar.add_task(what, total=None)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if time.monotonic() > show_after:
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
