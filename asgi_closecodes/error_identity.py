"""Error ids, which clients report as ``ref``, and fingerprints of bugs.

An id has twelve characters of Crockford's base 32, like "1PB4XQ7Z0M8K": no ambiguous letters, sorted by time.
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
from types import CodeType, TracebackType

_PACKAGE = str(Path(__file__).resolve().parent) + os.sep
_LIBRARIES = tuple(
    f"{Path(path).resolve()}{os.sep}"
    for name, path in sysconfig.get_paths().items()
    if name in {"stdlib", "platstdlib", "purelib", "platlib"}
)
# Libraries in stack traces of other machines, and of the system outside of a virtual environment.
_INSTALLED = re.compile(r"[\\/](site|dist)-packages[\\/]|[\\/]lib(64)?[\\/]python3\.\d+[\\/]")
_MAX_CAUSES = 20
_MAX_GROUP_DEPTH = 20  # groups in groups; the standard library prints them by recursion
_MAX_EXCEPTIONS = 1000

UNKNOWN = "unknown"
"""Fingerprint of an exception that cannot be inspected."""

# The interpreter's own accessors: a class may override these attributes.
_traceback_of = vars(BaseException)["__traceback__"].__get__
_cause_of = vars(BaseException)["__cause__"].__get__
_context_of = vars(BaseException)["__context__"].__get__
_suppresses_context = vars(BaseException)["__suppress_context__"].__get__
_members_of = vars(BaseExceptionGroup)["exceptions"].__get__
_qualname_of = vars(type)["__qualname__"].__get__
_module_of = vars(type)["__module__"].__get__
_MAX_FRAMES = 50

_known: dict[tuple[object, ...], tuple[str, list[CodeType]]] = {}  # kept alive: their ids are in the keys
_MAX_KNOWN = 256
_MAX_KNOWN_FRAMES = 100

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ID_CHARS = 12
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_RANDOM_BITS = 18  # of 60; the other 42 hold milliseconds until the year 2109
_REFERENCE = re.compile(r"ref=([^\s;,\"']+)", re.IGNORECASE)
_MISREAD = str.maketrans("OIL", "011", "-")
_last_number = 0


def fingerprint(error: BaseException) -> str:
    """Return 12 hexadecimal digits that identify the bug: independent of line numbers, messages and middleware.

    They hash the type names of the chain of causes, and the application's functions in the tracebacks.
    Installed packages, the standard library and this package are left out. The result is ``unknown`` if
    the exception cannot be inspected.
    """
    try:
        traces, kept = _traces(error)
        if (known := _known.get(traces)) is not None:
            return known[0]
        lines = "\n".join(_fingerprint_lines(error, set()))
    except Exception:  # its class may override anything
        return UNKNOWN
    made = hashlib.blake2b(f"{lines}\n".encode("utf-8", "replace"), digest_size=6).hexdigest()
    if traces:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[traces] = made, kept
    return made


def _traces(error: BaseException) -> tuple[tuple[object, ...], list[CodeType]]:
    """Return a key that is equal for equal errors, and the code objects whose ids are in it.

    Nothing for a group, nor for long tracebacks.

    Code by id, for equal code objects may come from different files, and hashing one is slow. Types by name: a class
    that is kept would keep its module, and what a function that defines it has closed over, as a session.
    """
    key: list[object] = []
    codes: list[CodeType] = []
    for cause in chain_of(error):
        kind = type(cause)
        if issubclass(kind, BaseExceptionGroup):
            return (), []
        key.append(type_name(kind))
        trace = _traceback_of(cause)
        while trace is not None:
            frame = trace.tb_frame
            codes.append(code := frame.f_code)
            key += id(code), f"{frame.f_globals.get('__name__', '?')}"
            trace = trace.tb_next
        if len(codes) > _MAX_KNOWN_FRAMES:
            return (), []
    return tuple(key), codes


def type_name(cls: type[BaseException]) -> str:
    """Return ``module.Qualname``, or only the name of a builtin."""
    name, module = _qualname_of(cls), _module_of(cls)
    return name if module == "builtins" else f"{module if type(module) is str else '?'}.{name}"


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return the traceback of ``error``, even if its class overrides the attribute."""
    return _traceback_of(error)  # type: ignore[no-any-return]


def chain_of(error: BaseException) -> list[BaseException]:
    """Return ``error`` and its causes or contexts, even if classes override the attributes; at most 20."""
    chain = [error]
    seen = {id(error)}
    while (one := _cause_of(error) or (None if _suppresses_context(error) else _context_of(error))) is not None:
        if id(one) in seen or len(chain) == _MAX_CAUSES:
            break
        seen.add(id(one))
        chain.append(error := one)
    return chain


def is_plain(error: BaseException) -> bool:
    """Whether the standard library can print ``error``: no overridden attributes, and not nested too deeply."""
    pending, visited = [(error, 0)], 0
    while pending:
        one, depth = pending.pop()
        visited += 1
        if depth > _MAX_GROUP_DEPTH or visited > _MAX_EXCEPTIONS:
            return visited > _MAX_EXCEPTIONS
        try:
            lies = (
                one.__class__ is not type(one)
                or one.__traceback__ is not _traceback_of(one)
                or one.__cause__ is not _cause_of(one)
                or one.__context__ is not _context_of(one)
                or one.__suppress_context__ is not _suppresses_context(one)
            )
            hash(type(one))
        except Exception:
            return False
        if lies or type(type(one)) is not type:
            return False
        if issubclass(type(one), BaseExceptionGroup):
            pending += [(member, depth + 1) for member in _members_of(one)]
        pending += [
            (more, depth) for more in (_cause_of(one), _context_of(one)) if more is not None and more is not one
        ]
    return True


def _fingerprint_lines(error: BaseException, seen: set[int]) -> Iterator[str]:
    for cause in chain_of(error):
        if id(cause) in seen or len(seen) >= _MAX_CAUSES:
            return
        seen.add(id(cause))
        yield type_name(type(cause))
        yield from _functions(_traceback_of(cause))
        if issubclass(type(cause), BaseExceptionGroup):
            members = ("\n".join(_fingerprint_lines(member, seen)) for member in _members_of(cause)[:_MAX_CAUSES])
            yield from sorted({*members} - {""})


def _functions(trace: TracebackType | None) -> Iterable[str]:
    # Each once: a recursion is the same bug at any depth, and an exception object that is raised repeatedly
    # collects the frames of every time.
    functions: dict[str, None] = {}
    codes: set[int] = set()  # by id: hashing a code object is slow
    while trace is not None and len(functions) < _MAX_FRAMES:
        frame = trace.tb_frame
        code = frame.f_code
        trace = trace.tb_next
        if id(code) not in codes:
            codes.add(id(code))
            if not is_library(code.co_filename):
                functions[f"{frame.f_globals.get('__name__', '?')}:{code.co_qualname}"] = None
    return functions


def stack_fingerprint(stack: Iterable[tuple[CodeType, str]]) -> str:
    """Return 12 hexadecimal digits that identify where a thread stood, independent of line numbers.

    They hash the application's functions; those of libraries where there are no others.

    :param stack: code and module of each frame, outermost first.
    """
    functions: dict[bool, dict[str, None]] = {False: {}, True: {}}
    for code, module in stack:
        functions[is_library(code.co_filename)][f"{module}:{code.co_qualname}"] = None
    lines = [*functions[False]][:_MAX_FRAMES] or [*functions[True]][:_MAX_FRAMES]
    return hashlib.blake2b("\n".join(lines).encode("utf-8", "replace"), digest_size=6).hexdigest()


@functools.lru_cache(maxsize=4096)
def is_library(filename: str) -> bool:
    """Whether code in ``filename`` belongs to an installed package, the standard library or this package."""
    return filename.startswith((_PACKAGE, *_LIBRARIES, "<frozen")) or _INSTALLED.search(filename) is not None


def new_error_id() -> str:
    """Return an id that is larger than all earlier ones of this process; other processes have different ones."""
    global _last_number  # noqa: PLW0603 - one sequence a process is the point
    number = int(time.time() * 1000) << _RANDOM_BITS
    if number > _last_number:
        number |= int.from_bytes(os.urandom(3)) >> 24 - _RANDOM_BITS
    else:  # same millisecond, or the clock was set back
        number = _last_number + 1
    _last_number = number
    high, low = number >> 30, number & 0x3FFFFFFF  # Python is fast with integers of 30 bits
    return (
        f"{_PAIRS[high >> 20]}{_PAIRS[high >> 10 & 1023]}{_PAIRS[high & 1023]}"
        f"{_PAIRS[low >> 20]}{_PAIRS[low >> 10 & 1023]}{_PAIRS[low & 1023]}"
    )


def as_error_id(text: str) -> str:
    """Parse an id that a user typed or pasted: a whole close reason, lower case, O for 0, I or L for 1.

    The last ``ref=`` counts: with ``debug``, the exception's text in front may contain another.
    """
    references = _REFERENCE.findall(text)
    return (references[-1] if references else text.strip()).upper().translate(_MISREAD)


def time_of(error_id: str) -> float | None:
    """Return the time of an id in seconds since 1970, or None if it is not an id."""
    if len(error_id) != _ID_CHARS or not set(error_id) <= set(_ALPHABET):
        return None
    number = 0
    for char in error_id:
        number = number << 5 | _ALPHABET.index(char)
    return (number >> _RANDOM_BITS) / 1000
