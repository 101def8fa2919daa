"""``asgi-closecodes logs tail``: the last and new lines of a log, readable."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Iterable, Iterator
from operator import itemgetter

import click

from asgi_closecodes.cli.output import has_colours, printable, styled, write, write_errors
from asgi_closecodes.logs.formatters import trace_lines

from .follow import MAX_KEPT_BYTES, Followed, Recent
from .reader import Log, UnreadableError
from .reading import file_arguments, finish, open_log
from .record import Record, compact, dumps, record_line

_POLL_INTERVAL_S = 0.1
"""Time between two reads of followed files."""
_MAX_BATCH_LINES = 10_000
"""Maximum number of lines that are sorted together."""


@click.command()
@file_arguments
@click.option("-f", "--follow", is_flag=True, help="Wait for new lines, also after rotation.")
@click.option("-n", "--lines", type=click.IntRange(0), default=10, show_default=True, help="Number of lines.")
def tail(files: tuple[str, ...], *, as_json: bool, follow: bool, lines: int) -> None:
    """Print the last lines, readably.

    Several files are merged by time. Lines that are not JSON are printed with control characters escaped; --json skips
    them.
    """
    log = open_log(files)
    pipes = [file for file in log.files if not file.is_regular]
    if follow and pipes and len(log.files) > 1:
        raise click.UsageError("-f takes files or one pipe, not both")
    output = _Output(as_json=as_json, with_names=len(log.files) > 1)
    if follow and pipes:
        for line in log.lines_of(pipes[0]):
            output.print([(pipes[0].name, line)])
    else:
        growing: dict[str, Followed] = {}
        with contextlib.ExitStack() as stack:
            output.print(_last_lines(log, lines, growing, stack, wait=follow), most=lines)
            while follow and growing:
                more = _new_lines(growing)
                while batch := [*_batch(more)]:
                    output.print(batch)
                time.sleep(_POLL_INTERVAL_S)
    finish(log, found=output.has_written or not lines, nothing="no records" if as_json else "no lines")


def _last_lines(
    log: Log, count: int, growing: dict[str, Followed], stack: contextlib.ExitStack, *, wait: bool
) -> Iterator[tuple[str, bytes]]:
    """Yield the last lines of each file; add files that can grow to ``growing``."""
    for file in log.files:
        try:
            if file.is_growing():
                followed = growing[file.name] = stack.enter_context(contextlib.closing(Followed(file.name)))
                lines = followed.read_last(count)
                if not wait and (unfinished := followed.take_incomplete()):
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
    for name, line in itertools.islice(lines, _MAX_BATCH_LINES):
        kept = compact(line)
        yield name, kept
        size += len(kept)
        if size > MAX_KEPT_BYTES:
            return


def _new_lines(growing: dict[str, Followed]) -> Iterator[tuple[str, bytes]]:
    for name, followed in [*growing.items()]:
        try:
            for line in followed.read_new():
                yield name, line
        except OSError as error:
            write_errors(f"{name}: cannot be read any more: {error.strerror}")
            del growing[name]


def _latest(timed: list[tuple[float, str, bytes]]) -> list[tuple[float, str, bytes]]:
    """Return the last lines by time, bounded by memory."""
    timed.sort(key=itemgetter(0))
    sizes = itertools.accumulate(len(line) for _, _, line in reversed(timed))
    return timed[len(timed) - sum(1 for size in sizes if size <= MAX_KEPT_BYTES) :]


class _Output:
    """Print lines of several files; each batch is sorted by time."""

    def __init__(self, *, as_json: bool, with_names: bool) -> None:
        self.has_written = False
        self._as_json = as_json
        self._with_names = with_names
        self._times: dict[str, float] = {}

    def print(self, lines: Iterable[tuple[str, bytes]], most: int | None = None) -> None:
        """Print pairs of a file name and a line; at most the last ``most``."""
        timed: list[tuple[float, str, bytes]] = []
        size = 0
        for name, line in lines:
            record = Record.parse(line, name)
            if record is not None and record.time is not None:
                self._times[name] = record.time  # lines without a time, as text below a record, keep their order
            timed.append((self._times.get(name, -math.inf), name, compact(line)))
            size += len(timed[-1][2])
            if size > 2 * MAX_KEPT_BYTES:  # many files: only the last lines of all are needed
                timed = _latest(timed)
                size = sum(len(kept) for _, _, kept in timed)
        timed.sort(key=itemgetter(0))
        for _, name, kept in timed if most is None else timed[max(len(timed) - most, 0) :]:
            for text in self._shown(name, Record.parse(kept, name) or kept):
                write(text)
                self.has_written = True
        sys.stdout.flush()

    def _shown(self, name: str, line: Record | bytes) -> Iterator[str]:
        if self._as_json:
            if isinstance(line, Record):
                yield dumps(line.raw)
            return
        start = styled("2", f"{printable(name)} | ") if self._with_names else ""
        if isinstance(line, Record):
            start += printable(line.prefix)
            yield start + record_line(line)
            if trace := line.trace or line.stack:
                yield from (start + line for line in trace_lines(trace, colours=has_colours()))
        else:
            yield start + printable(line.decode("utf-8", "replace").rstrip("\r"))
