"""Shedding in rounds, for a sensor that shows the effect of shedding only later. A state machine without I/O."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable

ROUND_SHARE = 0.05
"""Share of the open sessions that a round sheds; at least one session."""

SETTLE_S = 2.0
"""Seconds between the return of the memory and the next measurement: longer than a sensor's value may be old."""

MIN_RETURN_SHARE = 0.25
"""Share of the memory of its sessions that a round has to bring back, or it is poor."""

MAX_POOR_ROUNDS = 2
"""Poor rounds in a row that end the shedding."""


class Phase(enum.Enum):
    """State of the shedding."""

    WATCHING = enum.auto()
    SHEDDING = enum.auto()
    RELEASING = enum.auto()
    """The sessions of the round clean up."""
    RETURNING = enum.auto()
    """Freed memory is being returned to the operating system."""
    SETTLING = enum.auto()
    FUTILE = enum.auto()
    """Shedding has ended: the memory does not belong to sessions."""


class Rounds:
    """Decides when to shed how many sessions, and when that is futile.

    A round sheds at most 5 % of the open sessions. It waits until they are released and their memory is returned, and
    then measures the gain. It is poor if less than a quarter of what its sessions held came back. It is also poor if
    too many more sessions would have to follow. Too many are more than there are, or a greater share of them than came
    back of the memory, if that is less than half. Two poor rounds in a row end the shedding until usage has been below
    the limit.

    The caller calls :meth:`advance` regularly, sheds :attr:`remaining` sessions at its own pace, and returns memory
    whenever the phase becomes ``RETURNING``.

    :param clock: monotonic seconds.
    """

    __slots__ = (
        "_clock", "_deadline", "_open_at_start", "_poor", "_quota", "_shed", "_usage_at_start", "baseline",
        "has_been_poor", "phase", "shed",
    )  # fmt: skip

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.phase = Phase.WATCHING
        self.baseline: float | None = None
        """Usage without sessions; None if it is unknown."""
        self.shed = 0
        """Sessions shed since the usage was below the limit."""
        self.has_been_poor = False
        """Whether one of these rounds was poor: then garbage has to be collected too."""
        self._poor = 0
        self._quota = self._shed = self._open_at_start = 0  # counts of this round
        self._usage_at_start = 0.0
        self._deadline = math.inf

    @property
    def remaining(self) -> int:
        """Sessions that this round still has to shed."""
        return self._quota - self._shed if self.phase is Phase.SHEDDING else 0

    def record_shed(self, count: int) -> None:
        """Count sessions that were told to end."""
        self._shed += count
        self.shed += count

    def advance(
        self,
        usage: float | None,
        *,
        shed_above: float | None,
        limit: float,
        open_sessions: int,
        unreleased: int,
        release_timeout: float,
        is_returning: bool,
    ) -> Phase:
        """Move on to the next phase if it is time; return the phase.

        :param usage: of the sensor; None if it is unknown, which sheds nobody.
        :param shed_above: usage from which on sessions are shed.
        :param limit: usage below which a new try is allowed after two poor rounds.
        :param open_sessions: those that are not leaving.
        :param unreleased: sessions of this round that still hold something.
        :param release_timeout: seconds to wait for them.
        :param is_returning: whether memory is being given back.
        """
        now = self._clock()
        is_above = usage is not None and shed_above is not None and usage >= shed_above
        match self.phase:
            case Phase.WATCHING | Phase.FUTILE:
                if usage is not None and usage < limit:
                    self._poor = self.shed = 0
                    self.has_been_poor = False
                    self.phase = Phase.WATCHING
                elif is_above and self.phase is Phase.WATCHING:
                    self._start(usage, open_sessions)
            case Phase.SHEDDING if not self.remaining or not is_above or not open_sessions:
                self.phase = Phase.RELEASING
                self._deadline = now + release_timeout
            case Phase.RELEASING if not unreleased or now >= self._deadline:
                self.phase = Phase.RETURNING
            case Phase.RETURNING if not is_returning:
                self.phase = Phase.SETTLING
                self._deadline = now + SETTLE_S
            case Phase.SETTLING if now >= self._deadline:
                if usage is not None and self._shed:
                    is_poor = self._is_poor(usage, shed_above, open_sessions)
                    self._poor = self._poor + 1 if is_poor else 0
                    self.has_been_poor |= is_poor
                self.phase = Phase.WATCHING
                if is_above:
                    self._start(usage, open_sessions)
        return self.phase

    def _start(self, usage: float | None, open_sessions: int) -> None:
        assert usage is not None
        if self._poor >= MAX_POOR_ROUNDS:
            self.phase = Phase.FUTILE
        elif open_sessions:
            self.phase = Phase.SHEDDING
            self._usage_at_start, self._open_at_start = usage, open_sessions
            self._quota, self._shed = max(int(open_sessions * ROUND_SHARE), 1), 0

    def _is_poor(self, usage: float, shed_above: float | None, open_sessions: int) -> bool:
        returned = self._usage_at_start - usage
        if returned <= 0:
            return True
        worth = None  # share of the sessions' memory that came back
        if self.baseline is not None:
            held = max(self._usage_at_start - self.baseline, 0.0) * self._shed / self._open_at_start
            worth = returned / held if held else math.inf
            if worth < MIN_RETURN_SHARE:
                return True
        if shed_above is None or usage < shed_above:
            return False
        needed = (usage - shed_above) / returned * self._shed
        if worth is None:
            worth = 0.5
        return needed > open_sessions * (1.0 if worth > 0.5 else worth)
