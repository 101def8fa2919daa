"""What a guard counts, and what it notices in the counts: observers like a user's own."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from . import events
from .codes import Close
from .error_identity import type_name

RECOVERED_AFTER = 10.0
"""Seconds without a refusal after which a gate is no longer saturated."""

_MOST_GROUPS = 20
"""Different errors that a snapshot tells of."""


class Tally:
    """Counts for :meth:`Guard.snapshot`."""

    COUNTED = (events.SessionRefused, events.SessionShed, events.SessionFailed)
    """The events that it is for."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, Any]] = {}  # by fingerprint, the latest last
        self.errors = 0
        self.refusals: Counter[str] = Counter()
        self.sheds: Counter[str] = Counter()
        self.closes: Counter[int] = Counter()

    def closed(self, close: Close | None) -> None:
        """Count a session that is over; None is an HTTP response."""
        if close is not None:
            self.closes[int(close.code)] += 1

    def __call__(self, event: events.Event) -> None:
        """Count ``event``."""
        match event:
            case events.SessionRefused(cause=cause, mode=mode) if mode != "shadow":
                self.refusals[cause] += 1
            case events.SessionShed(cause=cause):
                self.sheds[cause] += 1
            case events.SessionFailed():
                self.errors += 1
                group = self._groups.pop(event.fingerprint, None) or {
                    "fingerprint": event.fingerprint,
                    "type": type_name(type(event.exception)),
                    "count": 0,
                }
                group["count"] += 1
                group.update(route=event.session.route, ref=event.error_id, last_seen=time.time())
                self._groups[event.fingerprint] = group
                if len(self._groups) > _MOST_GROUPS:
                    del self._groups[next(iter(self._groups))]
            case _:
                pass

    def groups(self) -> list[dict[str, Any]]:
        """Return what failed lately, by bug, the latest first."""
        return [dict(group) for group in reversed(self._groups.values())]


class Saturation:
    """Notices when a gate begins to refuse sessions, and when it has refused nobody for a while.

    For gates that speak for the whole process; one client at its own limit is no news.
    """

    def __init__(self, report: events.Observer) -> None:
        self._report = report
        self._spells: dict[tuple[str, str], _Spell] = {}  # by gate and cause: three gates are called Pressure

    @property
    def is_watched(self) -> bool:
        """Whether a gate is saturated."""
        return bool(self._spells)

    def __call__(self, event: events.Event) -> None:
        """Take note of a refusal."""
        assert isinstance(event, events.SessionRefused)
        if not event.is_overload:
            return
        now = time.monotonic()
        key = event.gate, event.cause
        if (spell := self._spells.get(key)) is None:
            spell = self._spells[key] = _Spell(now)
            self._report(events.GateSaturated(*key, event.usage, event.limit))
        spell.refused += 1
        spell.last = now

    def look(self) -> None:
        """Report the gates that have recovered."""
        now = time.monotonic()
        for key, spell in [*self._spells.items()]:
            if now - spell.last >= RECOVERED_AFTER:
                del self._spells[key]
                self._report(events.GateRecovered(*key, spell.refused, spell.last - spell.first))


@dataclass(slots=True)
class _Spell:
    first: float
    last: float = 0.0
    refused: int = 0
