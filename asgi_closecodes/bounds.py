"""Bounds for untrusted numbers and labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from .codes import as_text

MAX_NUMBER = 2**53
"""Largest limit: JSON parsers and Redis scripts keep integers exact up to here."""

OTHER: Final = "_OTHER"
"""Label of all values beyond the maximum number of labels."""

MAX_LABELS = 32
MAX_LABEL_CHARS = 128
"""Longest label in characters."""


def finite(value: object) -> int | float | None:
    """Return ``value`` if it is a finite number that fits a float, else None."""
    if (
        type(value) is not int
        and type(value) is not float
        and (isinstance(value, bool) or not isinstance(value, (int, float)))
    ):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def is_between(value: object, least: float, most: float = MAX_NUMBER) -> bool:
    """Whether ``value`` is a number from ``least`` to ``most``; booleans are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


class FirstOnes:
    """Bounded set of labels: the first ``most`` values are their own label, all others get ``_OTHER``.

    :param known: values with their own label from the start.
    """

    __slots__ = ("_labels", "_most")

    def __init__(self, most: int = MAX_LABELS, known: Iterable[str] = ()) -> None:
        self._most = most
        self._labels = {value: value for value in known}

    def __call__(self, value: object) -> str:
        """Return the label of ``value``."""
        if type(value) is not str or len(value) > MAX_LABEL_CHARS:
            value = as_text(value)[:MAX_LABEL_CHARS]
        label = self._labels.get(value)
        if label is None:
            if len(self._labels) >= self._most:
                return OTHER
            # A lone surrogate would make all metrics unencodable.
            label = self._labels[value] = value.encode("utf-8", "replace").decode()
        return label
