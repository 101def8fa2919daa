"""Error ids: what a client reports and a log search finds.

Twelve characters of Crockford's base 32, like "1PB4XQ7Z0M8K": no letters that are misread, sorted by time.
"""

from __future__ import annotations

import os
import re
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH = 12
_SHIFTS = range(5 * (_LENGTH - 1), -1, -5)
_RANDOM_BITS = 18  # of 60; the other 42 hold milliseconds until the year 2109
_REFERENCE = re.compile(r"ref=([^\s;,\"']+)", re.IGNORECASE)
_MISREAD = str.maketrans("OIL", "011", "-")

_last = 0


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
