"""Reader of a log in several files: plain, gzip, globs and standard input, with bounded memory.

Most lines are irrelevant. So lines are first picked by bytes that they must contain, and only those are parsed.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import heapq
import io
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from .record import Record

STDIN = "-"

BLOCK_BYTES = 256 * 1024
MAX_LINE_BYTES = 4 * 1024 * 1024
"""Longer lines are skipped."""
MAX_SKIPPED_BYTES = 256 * 1024 * 1024
"""Longer lines end the file: compressed, they may need almost no space."""


class UnreadableError(Exception):
    """Unreadable file; the text names the file, the problem and the remedy."""


@dataclass(slots=True)
class Log:
    """Log in several files.

    Unreadable files are skipped and named in ``problems``.

    :param names: paths, globs, or "-" for standard input. Each file is read once.
    :param twice: keep pipes, so that they can be read more than once.
    :param progress: called with the number of bytes read from disk.
    """

    names: Sequence[str]
    twice: bool = False
    progress: Callable[[int], None] = lambda _: None
    problems: dict[str, None] = field(default_factory=dict)
    """Problems with files, each once."""
    notes: dict[str, None] = field(default_factory=dict)
    """Notes about partly read files."""
    has_json: bool = False
    """Whether any line looks like JSON."""
    files: list[LogFile] = field(init=False)

    def __post_init__(self) -> None:
        self.files = list(self._find())

    @property
    def lines(self) -> int:
        """Number of lines read so far."""
        return sum(file.lines for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files on disk, without pipes."""
        return sum(file.size for file in self.files)

    def close(self) -> None:
        """Remove the copies of pipes."""
        for file in self.files:
            file.close()

    def matching(self, *needles: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield file name and line for each line with one of ``needles``, file by file."""
        for file in self.files:
            for line in self.lines_of(file, *needles):
                yield file.name, line

    def records(self, *needles: bytes) -> Iterator[Record]:
        """Yield the records with one of ``needles``, file by file."""
        for file in self.files:
            yield from self.records_of(file, *needles)

    def records_of(self, file: LogFile, *needles: bytes) -> Iterator[Record]:
        """Yield the records of one file with one of ``needles``."""
        for line in self.lines_of(file, *needles):
            if (record := Record.parse(line, file.name)) is not None:
                yield record

    def lines_of(self, file: LogFile, *needles: bytes) -> Iterator[bytes]:
        """Yield the lines of one file with one of ``needles``, as they arrive."""
        block = b""
        file.lines = 0
        try:
            for block in file.blocks(self.progress):
                file.lines += block.count(b"\n")
                self.has_json = self.has_json or b'{"' in block
                yield from picked(block, needles)
        except UnreadableError as problem:
            self.problems[str(problem)] = None
        last = block.rpartition(b"\n")[2]
        if last and b'{"' in last and Record.parse(last) is None:
            self.notes[f"{file.name}: skipped its incomplete last line"] = None
        file.lines += bool(last)

    def _find(self) -> Iterator[LogFile]:
        seen = set()
        for name in self.names:
            paths = _expanded(name)
            if not paths:
                self.problems[f"{name}: no file matches"] = None
            for path in paths:
                try:
                    file = LogFile(path, twice=self.twice)
                except UnreadableError as problem:
                    self.problems[str(problem)] = None
                    continue
                if file.identity not in seen:
                    seen.add(file.identity)
                    yield file


class LogFile:
    """File of a log, or standard input.

    :raises UnreadableError: if there is no such file, or it is a directory.
    """

    def __init__(self, name: str, *, twice: bool = False) -> None:
        self.name = "standard input" if name == STDIN else name
        self._path = 0 if name == STDIN else name  # for open() and stat()
        self._kept: BinaryIO | None = None
        self.lines = 0
        with self._explained():
            found = os.stat(self._path)  # noqa: PTH116 - 0 is standard input
        if stat.S_ISDIR(found.st_mode):
            raise UnreadableError(f"{name}: is a directory; give its files, as {Path(name) / '*.log'}")
        self.is_regular = stat.S_ISREG(found.st_mode)
        self.identity = (found.st_dev, found.st_ino)
        self.size = found.st_size if self.is_regular else 0
        self._keep = twice and not self.is_regular

    def close(self) -> None:
        """Remove the copy of a pipe."""
        if self._kept is not None:
            self._kept.close()

    def blocks(self, progress: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
        """Yield blocks of whole lines; only the last may end within a line.

        :raises UnreadableError: if it is binary, or reading it fails.
        """
        with self._explained(), self._open() as raw, _unpacked(raw) as stream:
            position = 0
            checked = False
            for block in whole_lines(stream):
                if not checked and b"\0" in block and b'{"' not in block:
                    raise UnreadableError(f"{self.name}: is binary; only text and gzip can be read")
                checked = True
                yield block
                if self.is_regular:
                    position, before = raw.tell(), position
                    progress(position - before)

    def is_growing(self) -> bool:
        """Whether the file can be followed: not a pipe, not compressed.

        :raises UnreadableError: as :meth:`blocks`.
        """
        if not self.is_regular or self._path == 0:
            return False
        next(self.blocks(), b"")
        with self._explained(), self._open() as stream:
            return not _is_gzip(stream)

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        if not self._keep:
            with open(self._path, "rb", closefd=self._path != 0) as stream:
                if self.is_regular:
                    stream.seek(0)  # standard input may have been read before
                yield stream
            return
        if self._kept is None:
            self._kept = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - closed by close()
            with open(self._path, "rb", closefd=self._path != 0) as pipe:
                shutil.copyfileobj(pipe, self._kept)
        self._kept.seek(0)
        yield self._kept

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise UnreadableError(f"{self.name}: no such file") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UnreadableError(f"{self.name}: is damaged: {error}; the part before that was read") from None
        except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
            raise UnreadableError(f"{self.name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _expanded(name: str) -> list[str]:
    if name == STDIN or not glob.has_magic(name) or os.path.lexists(name):
        return [name]
    return sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - what the user wrote is shown


@contextlib.contextmanager
def _unpacked(raw: BinaryIO) -> Iterator[BinaryIO]:
    if _is_gzip(raw):
        with gzip.GzipFile(fileobj=raw) as stream, io.BufferedReader(cast("Any", stream), BLOCK_BYTES) as buffered:
            yield buffered
    else:
        yield raw


def _is_gzip(stream: BinaryIO) -> bool:
    return cast("io.BufferedReader", stream).peek(2)[:2] == b"\x1f\x8b"


def whole_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield blocks of whole lines as they arrive; the last may end within a line.

    :raises ValueError: for an endless line.
    """
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    rest = b""
    is_too_long = False
    skipped = 0
    while chunk := read(BLOCK_BYTES):
        # A file truncated while open begins with NUL bytes.
        head, end, tail = (chunk if rest else chunk.lstrip(b"\0")).rpartition(b"\n")
        if is_too_long:
            if not end:
                skipped += len(chunk)
                if skipped > MAX_SKIPPED_BYTES:
                    raise ValueError(f"a line is longer than {MAX_SKIPPED_BYTES >> 20} MiB")
                continue
            head, is_too_long, skipped = head.partition(b"\n")[2], False, 0
        if end:
            yield b"".join((rest, head, end))
            rest = tail
        else:
            rest += tail
        if len(rest) > MAX_LINE_BYTES:
            rest, is_too_long = b"", True
    if rest:
        yield rest


def picked(block: bytes, needles: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the lines of ``block`` with one of ``needles``, or all lines without needles."""
    if not needles:
        yield from block.removesuffix(b"\n").split(b"\n")
    found = [(at, needle) for needle in needles if (at := block.find(needle)) >= 0]
    heapq.heapify(found)
    while found:
        at = found[0][0]
        start = block.rfind(b"\n", 0, at) + 1
        end = block.find(b"\n", at)
        end = len(block) if end < 0 else end
        yield block[start:end]
        while found and found[0][0] < end:
            needle = heapq.heappop(found)[1]
            if (at := block.find(needle, end)) >= 0:
                heapq.heappush(found, (at, needle))
