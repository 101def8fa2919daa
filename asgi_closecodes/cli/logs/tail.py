"""``asgi-closecodes logs tail``: the log as people read it, and as it is written."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Iterable, Iterator
from operator import itemgetter

import click

from asgi_closecodes.cli.output import complain, has_colours, printable, styled, write
from asgi_closecodes.logs.formatters import trace_lines

from .follow import MOST_BYTES, Followed, Recent
from .reader import Log, UnreadableError
from .reading import end, log_of, of_files
from .record import Record, compact, dumps, record_line

_POLL = 0.1
"""Seconds between two looks at the files that are followed."""
_BATCH = 10_000
"""Lines that are put in order together, at the most."""


@click.command()
@of_files
@click.option("-f", "--follow", is_flag=True, help="Wait for more lines, through rotation and truncation.")
@click.option("-n", "--lines", type=click.IntRange(0), default=10, show_default=True, help="Lines to begin with.")
def tail(files: tuple[str, ...], *, as_json: bool, follow: bool, lines: int) -> None:
    """Print the last lines, readably.

    Several files are merged by time. Lines that are not JSON are printed as they are, but for what would drive the
    terminal; --json leaves them out.
    """
    log = log_of(files)
    pipes = [file for file in log.files if not file.is_regular]
    if follow and pipes and len(log.files) > 1:
        raise click.UsageError("-f follows files, or one pipe, but not both")
    output = _Output(as_json=as_json, with_names=len(log.files) > 1)
    if follow and pipes:
        for line in log.lines_of(pipes[0]):
            output.print([(pipes[0].name, line)])
    else:
        growing: dict[str, Followed] = {}
        with contextlib.ExitStack() as stack:
            output.print(_last(log, lines, growing, stack, wait=follow), most=lines)
            while follow and growing:
                more = _more(growing)
                while batch := [*_batch(more)]:
                    output.print(batch)
                time.sleep(_POLL)
    end(log, found=output.has_written or not lines, nothing="no records" if as_json else "no lines")


def _last(
    log: Log, count: int, growing: dict[str, Followed], stack: contextlib.ExitStack, *, wait: bool
) -> Iterator[tuple[str, bytes]]:
    """Yield the last lines of each file, and put those into ``growing`` that more may come from."""
    for file in log.files:
        try:
            if file.is_growing():
                followed = growing[file.name] = stack.enter_context(contextlib.closing(Followed(file.name)))
                lines = followed.last(count)
                if not wait and (unfinished := followed.unfinished()):
                    lines.append(unfinished)
                file.lines = len(lines)
        except (UnreadableError, OSError) as problem:
            log.problems[str(problem)] = None
        else:
            if file.name not in growing:
                recent = Recent(count)
                for line in log.lines_of(file):
                    recent.append(line)
                lines = [*recent.kept]
            yield from ((file.name, line) for line in lines)


def _batch(lines: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    size = 0
    for name, line in itertools.islice(lines, _BATCH):
        kept = compact(line)
        yield name, kept
        size += len(kept)
        if size > MOST_BYTES:
            return


def _more(growing: dict[str, Followed]) -> Iterator[tuple[str, bytes]]:
    for name, followed in [*growing.items()]:
        try:
            for line in followed.more():
                yield name, line
        except OSError as error:
            complain(f"{name}: cannot be read any more: {error.strerror}")
            del growing[name]


def _last_of(timed: list[tuple[float, str, bytes]]) -> list[tuple[float, str, bytes]]:
    """Return those that are last by time, as many as are meant to be kept."""
    timed.sort(key=itemgetter(0))
    sizes = itertools.accumulate(len(line) for _, _, line in reversed(timed))
    return timed[len(timed) - sum(1 for size in sizes if size <= MOST_BYTES) :]


class _Output:
    """Lines of several files, in the order of their times as far as they come together."""

    def __init__(self, *, as_json: bool, with_names: bool) -> None:
        self.has_written = False
        self._as_json = as_json
        self._with_names = with_names
        self._times: dict[str, float] = {}

    def print(self, lines: Iterable[tuple[str, bytes]], most: int | None = None) -> None:
        """Print ``lines``, of each its file's name and itself; at most the last ``most``."""
        timed: list[tuple[float, str, bytes]] = []
        size = 0
        for name, line in lines:
            record = Record.parse(line, name)
            if record is not None and record.time is not None:
                self._times[name] = record.time  # what has no time, as text below a record, stays where it is
            timed.append((self._times.get(name, -math.inf), name, compact(line)))
            size += len(timed[-1][2])
            if size > 2 * MOST_BYTES:  # of many files: only the last of them all are wanted
                timed = _last_of(timed)
                size = sum(len(kept) for _, _, kept in timed)
        timed.sort(key=itemgetter(0))
        for _, name, kept in timed if most is None else timed[max(len(timed) - most, 0) :]:
            for text in self._shown(name, Record.parse(kept, name) or kept):
                write(text)
                self.has_written = True
        sys.stdout.flush()

    def _shown(self, name: str, told: Record | bytes) -> Iterator[str]:
        if self._as_json:
            if isinstance(told, Record):
                yield dumps(told.raw)
            return
        start = styled("2", f"{printable(name)} | ") if self._with_names else ""
        if isinstance(told, Record):
            start += printable(told.prefix)
            yield start + record_line(told)
            if told.trace:
                yield from (start + line for line in trace_lines(told.trace, colours=has_colours()))
        else:
            yield start + printable(told.decode("utf-8", "replace").rstrip("\r"))
