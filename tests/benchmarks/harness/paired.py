"""One thing beside another, measured in turns: the pairs decide, since the machine's own speed drifts.

A median comes with the interval that holds the true one with 95 % confidence, whatever the distribution (order
statistics of the sample). A goal inside of that interval is neither reached nor missed: such a result is refused.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

FEWEST_PAIRS = 7
"""Fewer are not judged."""

Samples: TypeAlias = Mapping[str, Mapping[str, Sequence[float]]]
"""Figures by subject and by name, one a turn."""

Verdict: TypeAlias = Literal["reached", "missed", "refused", "differs", "no difference seen", "too few pairs", ""]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A ``figure`` of ``subject``, as it is or ``beside`` another subject's; and what it is to be.

    :param by: ``ratio`` or ``difference`` of each pair; what stands beside nothing is taken as it is.
    :param most: the goal, from above; :param least: from below. Without either one the question is whether
        there is a difference at all.
    """

    figure: str
    subject: str
    beside: str | None = None
    by: Literal["ratio", "difference"] = "ratio"
    most: float | None = None
    least: float | None = None

    def goal(self) -> str:
        """Return the goal in words, or nothing."""
        if self.most is not None:
            return f"at most {number(self.most)}"
        return "" if self.least is None else f"at least {number(self.least)}"

    def needs(self) -> set[str]:
        """Return the subjects without which there is nothing to compare."""
        return {self.subject, self.beside or self.subject}

    def values(self, samples: Samples) -> list[float]:
        """Return what each turn, or pair of turns, says."""
        values = [*samples[self.subject][self.figure]]
        if self.beside is not None:
            pairs = zip(values, samples[self.beside][self.figure], strict=True)
            values = [mine - other if self.by == "difference" else _ratio(mine, other) for mine, other in pairs]
        return values

    def result(self, samples: Samples) -> Result:
        """Return what the turns say together."""
        values = self.values(samples)
        low, high = interval(values)
        return Result(self, statistics.median(values), low, high, len(values))

    def verdict(self, low: float, high: float, pairs: int) -> Verdict:
        """Return whether an interval reaches the goal; ``refused`` is one too wide to tell."""
        if pairs < FEWEST_PAIRS:
            return "too few pairs"
        if self.most is not None or self.least is not None:
            if (self.most is None or high <= self.most) and (self.least is None or low >= self.least):
                return "reached"
            if (self.most is not None and low > self.most) or (self.least is not None and high < self.least):
                return "missed"
            return "refused"
        if self.beside is None:
            return ""
        equal = 0 if self.by == "difference" else 1
        return "no difference seen" if low <= equal <= high else "differs"


@dataclass(frozen=True, slots=True)
class Result:
    """A median and the interval around it."""

    of: Comparison
    median: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> Verdict:
        """Whether the goal was reached; see :meth:`Comparison.verdict`."""
        return self.of.verdict(self.low, self.high, self.pairs)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of the median with 95 % confidence; of fewer than 6 values the least and the greatest."""
    ordered = sorted(values)
    count = len(ordered)
    outside, chance = 0, 0.5**count
    while 2 * (chance + math.comb(count, outside + 1) * 0.5**count) <= 0.05:
        outside += 1
        chance += math.comb(count, outside) * 0.5**count
    return ordered[outside], ordered[-1 - outside]


def _ratio(mine: float, other: float) -> float:
    return mine / other if other else math.inf if mine else 1.0


def number(value: float) -> str:
    """Return ``value`` with three digits that count, and thousands apart."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{digits}f}".replace(",", " ")
