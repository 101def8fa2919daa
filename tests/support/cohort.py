"""Cohort of sessions after a deploy, simulated: ages are drawn, and clients come back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from asgi_closecodes import Settings
from asgi_closecodes.guard.deadlines import Deadlines

GENERATIONS = 3
PERIOD_SHARE = 0.01
"""Share of the age over which reconnects are counted."""


class _Member:
    """Part of a session that Deadlines uses."""

    key = None
    is_answered = True
    is_leaving = False

    def __init__(self, arrived_at: float) -> None:
        self.arrived_at = arrived_at
        self.left: Any = None

    def schedule_close(self, refusal: Any) -> None:
        self.left = refusal


def reconnect_peak(draw: Callable[[], float], count: int = 10_000, age: float = 3600.0) -> float:
    """Return the peak of reconnects in 1 % of the age, as a multiple of the mean; clients obey their hints."""
    now = 0.0
    members: Any = {}
    deadlines = Deadlines(members, lambda: None, clock=lambda: now, draw=draw)
    deadlines.apply(Settings.model_construct(max_session_age=age))
    arrivals, counts = [0.0] * count, [0] * int((GENERATIONS + 1) / PERIOD_SHARE)
    for _ in range(GENERATIONS):
        for number, arrived_at in enumerate(arrivals):
            now = arrived_at
            member: Any = _Member(now)
            members[member] = None
            deadlines.add(member)
            now = deadlines.next_at or 0.0
            rest = deadlines.check()
            assert rest is not None
            with contextlib.suppress(StopIteration):
                rest().__await__().send(None)
            arrivals[number] = now + member.left.retry_after
            del members[member]
            deadlines.discard(member)
            counts[int(arrivals[number] / age / PERIOD_SHARE)] += 1
    mean = count * age * PERIOD_SHARE / (0.75 * age + 2.5)
    return max(counts) / mean
