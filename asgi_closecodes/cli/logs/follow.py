"""Last and new lines of a log file, through rotation by rename or truncation."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .reader import BLOCK_BYTES, MAX_LINE_BYTES
from .record import compact

MAX_KEPT_BYTES = 32 * 1024 * 1024
"""Bytes of kept lines."""
_LINE_OVERHEAD_BYTES = 200
"""Memory of a kept line in addition to its bytes."""


class Recent:
    """Buffer of the last lines, bounded by count and memory.

    :param count: maximum number of lines.
    """

    def __init__(self, count: int) -> None:
        self.kept: deque[bytes] = deque()
        self._count = count
        self._size = 0

    def append(self, line: bytes) -> None:
        """Keep ``line``, shortened if it is long."""
        self.kept.append(compact(line))
        self._size += len(self.kept[-1]) + _LINE_OVERHEAD_BYTES
        while len(self.kept) > self._count or self._size > MAX_KEPT_BYTES:
            self._size -= len(self.kept.popleft()) + _LINE_OVERHEAD_BYTES


class Followed:
    """Growing file. Lines are returned once their end is written.

    :param path: path of the file, which may be replaced or truncated at any time.
    :raises OSError: if it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stream = _opened(path)
        self._rest = b""

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def read_last(self, count: int) -> list[bytes]:
        """Seek to the end, and return the last ``count`` lines."""
        end = start = self._stream.seek(0, os.SEEK_END)
        ends = 0
        while start and ends <= count and end - start < MAX_LINE_BYTES + count * BLOCK_BYTES:
            size = min(BLOCK_BYTES, start)
            start -= size
            self._stream.seek(start)
            ends += self._stream.read(size).count(b"\n")
        self._stream.seek(start)
        lines = Recent(count)
        self._rest = b""
        is_whole = not start
        while (at := self._stream.tell()) < end and (chunk := self._stream.read(min(BLOCK_BYTES, end - at))):
            *finished, self._rest = (self._rest + chunk).split(b"\n")
            for line in finished:
                if is_whole:
                    lines.append(line)
                is_whole = True
            if len(self._rest) > MAX_LINE_BYTES:
                self._rest, is_whole = b"", False
        return [*lines.kept]

    def take_incomplete(self) -> bytes:
        """Return and discard the incomplete last line."""
        rest, self._rest = self._rest, b""
        return rest

    def read_new(self) -> Iterator[bytes]:
        """Yield the lines completed since the last call."""
        yield from self._read()
        try:
            found = Path(self._path).stat()
            if not os.path.samestat(found, os.fstat(self._stream.fileno())):
                successor = _opened(self._path)
            elif found.st_size < self._stream.tell():
                successor = None
            else:
                return
        except OSError:  # rotated: the new file does not exist yet
            return
        if successor is None:
            self._stream.seek(0)
        else:
            yield from self._read()  # written before the rotation
            self._stream.close()
            self._stream = successor
        if rest := self.take_incomplete():  # it will not be completed
            yield rest
        yield from self._read()

    def _read(self) -> Iterator[bytes]:
        while chunk := self._stream.read(BLOCK_BYTES):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            yield from lines
            if len(self._rest) > MAX_LINE_BYTES:
                yield self.take_incomplete()


def _opened(path: str) -> BinaryIO:
    return Path(path).open("rb", buffering=0)
