"""An error's identity: the ref that a client reports and a log search finds, and the fingerprint of its bug.

A ref is twelve characters of Crockford's base 32, like "1PB4XQ7Z0M8K": no letters that are misread, sorted by time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sysconfig
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

_PACKAGE = str(Path(__file__).resolve().parent) + os.sep
_LIBRARIES = tuple(
    f"{Path(path).resolve()}{os.sep}"
    for name, path in sysconfig.get_paths().items()
    if name in {"stdlib", "platstdlib", "purelib", "platlib"}
)
# The same of another machine, whose stack trace is read here; and of the system, seen from a virtual environment.
_INSTALLED = re.compile(r"[\\/](site|dist)-packages[\\/]|[\\/]lib(64)?[\\/]python3\.\d+[\\/]")
_MOST_CAUSES = 20
_MOST_FRAMES = 50

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH = 12
_SHIFTS = range(5 * (_LENGTH - 1), -1, -5)
_RANDOM_BITS = 18  # of 60; the other 42 hold milliseconds until the year 2109
_REFERENCE = re.compile(r"ref=([^\s;,\"']+)", re.IGNORECASE)
_MISREAD = str.maketrans("OIL", "011", "-")
_last = 0


def fingerprint(error: BaseException) -> str:
    """Return 12 hexadecimal digits that stay the same when lines move, messages differ or middleware is added.

    They are taken over the type names of the chain of causes and the functions of the application that the
    traceback goes through: not those of installed packages, nor of the standard library or this one.
    """
    digest = hashlib.blake2b(digest_size=6)
    for line in _marks(error, set()):
        digest.update(line.encode("utf-8", "replace"))
        digest.update(b"\n")
    return digest.hexdigest()


def type_name(cls: type[BaseException]) -> str:
    """Return ``module.Qualname``; a builtin's name stands bare."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _marks(error: BaseException, seen: set[int]) -> Iterator[str]:
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen and len(seen) < _MOST_CAUSES:
        seen.add(id(cause))
        yield type_name(type(cause))
        yield from _functions(cause.__traceback__)
        if isinstance(cause, BaseExceptionGroup):
            members = ("\n".join(_marks(member, seen)) for member in cause.exceptions)
            yield from sorted({*members} - {""})
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _functions(trace: TracebackType | None) -> Iterable[str]:
    # Each once: a recursion is the same bug however deep it went this time, and an exception object that is raised
    # again and again has gathered the frames of every time.
    functions: dict[str, None] = {}
    codes: set[int] = set()  # ids: codes are hashed by all that they consist of
    while trace is not None and len(functions) < _MOST_FRAMES:
        frame = trace.tb_frame
        code = frame.f_code
        trace = trace.tb_next
        if id(code) not in codes:
            codes.add(id(code))
            if not is_library(code.co_filename):
                functions[f"{frame.f_globals.get('__name__', '?')}:{code.co_qualname}"] = None
    return functions


@functools.lru_cache(maxsize=4096)
def is_library(filename: str) -> bool:
    """Whether code in ``filename`` belongs to an installed package, the standard library or this package."""
    return filename.startswith((_PACKAGE, *_LIBRARIES, "<frozen")) or _INSTALLED.search(filename) is not None


def new_error_id() -> str:
    """Return an id larger than every earlier one of this process, and unlike other processes'."""
    global _last  # noqa: PLW0603 - one sequence a process is the point
    number = int(time.time() * 1000) << _RANDOM_BITS
    if number > _last:
        number |= int.from_bytes(os.urandom(3)) >> 24 - _RANDOM_BITS
    else:  # one more in the same millisecond, or the clock was set back
        number = _last + 1
    _last = number
    return "".join([_ALPHABET[number >> shift & 31] for shift in _SHIFTS])


def as_error_id(text: str) -> str:
    """Return the id in what somebody typed or pasted: a whole close reason, in lower case, O for 0, I or L for 1."""
    reference = _REFERENCE.search(text)
    return (reference[1] if reference else text.strip()).upper().translate(_MISREAD)


def time_of(error_id: str) -> float | None:
    """Return when an id was made, in seconds since 1970, or None if it is none."""
    if len(error_id) != _LENGTH or not set(error_id) <= set(_ALPHABET):
        return None
    number = 0
    for char in error_id:
        number = number << 5 | _ALPHABET.index(char)
    return (number >> _RANDOM_BITS) / 1000
