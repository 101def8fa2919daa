"""Counts of a guard since its start, for the snapshot."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, TypedDict

from asgi_closecodes import events
from asgi_closecodes.bounds import MAX_LABELS, OTHER, FirstOnes, is_between
from asgi_closecodes.codes import Close, CloseCode
from asgi_closecodes.concurrency import COUNTING
from asgi_closecodes.error_identity import type_name

_MOST_GROUPS = 20
"""Different bugs that a snapshot lists."""


class Counts(TypedDict):
    """The counts of a :class:`asgi_closecodes.events.Snapshot`."""

    errors: int
    refusals: dict[str, int]
    sheds: dict[str, int]
    closes: dict[int | str, int]
    error_groups: list[dict[str, Any]]


class Counters:
    """Counts for :meth:`Guard.snapshot`."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Reset all counts: at the start, and in a child process, which inherits its parent's."""
        self._groups: dict[str, dict[str, Any]] = {}  # by fingerprint, the latest last
        self.errors = 0
        self.refusals: Counter[str] = Counter()
        self.sheds: Counter[str] = Counter()
        self.closes: dict[int | str, int] = {}
        # Causes and codes may come from clients. A bounded table of labels each keeps the sums right.
        self._refusal_causes = FirstOnes()
        self._shed_causes = FirstOnes()
        self._codes = FirstOnes(MAX_LABELS + len(CloseCode), known=map(str, map(int, CloseCode)))

    def closed(self, close: Close) -> None:
        """Count a session that is over; the caller has the lock."""
        code, closes = close.code, self.closes
        label = code if type(code) is int and code in closes else self._label_of(code)
        closes[label] = closes.get(label, 0) + 1  # a Counter takes longer

    def _label_of(self, code: int) -> int | str:
        is_known = is_between(code, 0, 65535) and self._codes(str(int(code))) != OTHER
        return int(code) if is_known else OTHER

    def refused(self, event: events.SessionRefused) -> None:
        """Count a refusal, unless it is a shadow's."""
        if event.mode != "shadow":
            with COUNTING:
                self.refusals[self._refusal_causes(event.cause)] += 1

    def shed(self, event: events.SessionShed) -> None:
        """Count a session that was ended from outside."""
        with COUNTING:
            self.sheds[self._shed_causes(event.cause)] += 1

    def failed(self, event: events.SessionFailed) -> None:
        """Count a failure."""
        with COUNTING:
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

    def counts(self) -> Counts:
        """Return all counts, taken at the same moment."""
        with COUNTING:
            return {
                "errors": self.errors,
                "refusals": dict(self.refusals),
                "sheds": dict(self.sheds),
                "closes": dict(self.closes),
                "error_groups": self.groups(),
            }

    def groups(self) -> list[dict[str, Any]]:
        """Return the latest failures, one entry a bug, the latest first."""
        with COUNTING:
            return [dict(group) for group in reversed(self._groups.values())]
