"""The gates that refuse sessions now, and since when."""

from __future__ import annotations

import time
from dataclasses import dataclass

from asgi_closecodes import events
from asgi_closecodes.bounds import FirstOnes
from asgi_closecodes.concurrency import COUNTING

RECOVERED_AFTER_S = 10.0
"""Seconds without a refusal after which a gate is no longer saturated."""


class Saturation:
    """Notices when a gate begins to refuse sessions, and when it has refused nobody for a while.

    For gates that speak for the whole process; one client at its own limit is no news.
    """

    def __init__(self, report: events.Observer) -> None:
        self._report = report
        self._gates = FirstOnes()
        self._causes = FirstOnes()
        self._spells: dict[tuple[str, str], _Spell] = {}  # by gate and cause: a gate of the user's may have several

    @property
    def is_watched(self) -> bool:
        """Whether a gate is saturated."""
        return bool(self._spells)

    def __call__(self, event: events.Event) -> None:
        """Take note of a refusal."""
        assert isinstance(event, events.SessionRefused)
        if event.mode == "shadow" or not event.is_overload:
            return
        now = time.monotonic()
        with COUNTING:
            key = self._gates(event.gate), self._causes(event.cause)
            if begins := (spell := self._spells.get(key)) is None:
                spell = self._spells[key] = _Spell(now)
            spell.refused += 1
            spell.last = now
        if begins:
            self._report(events.GateSaturated(*key, event.usage, event.limit))

    def forget(self) -> None:
        """Begin anew, in a child process."""
        self._spells.clear()

    def check(self) -> None:
        """Report the gates that have recovered."""
        now = time.monotonic()
        with COUNTING:
            recovered = {key: spell for key, spell in self._spells.items() if now - spell.last >= RECOVERED_AFTER_S}
            for key in recovered:
                del self._spells[key]
        for key, spell in recovered.items():
            self._report(events.GateRecovered(*key, spell.refused, spell.last - spell.first))


@dataclass(slots=True)
class _Spell:
    first: float
    last: float = 0.0
    refused: int = 0
