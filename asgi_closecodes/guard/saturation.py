"""Gates that refuse sessions now, and since when."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from asgi_closecodes import events
from asgi_closecodes.bounds import FirstOnes
from asgi_closecodes.concurrency import COUNTING

RECOVERED_AFTER_S = 10.0
"""Seconds without a refusal after which a gate is no longer saturated."""


class Saturation:
    """Reports when a gate begins to refuse sessions, and when it has room and has refused none for a while.

    Only for gates of the whole process: one client at its own limit is not saturation.

    :param is_full: whether the gate of a name would refuse now. That nobody came does not mean that it has recovered.
    """

    def __init__(self, report: events.Observer, is_full: Callable[[str], bool]) -> None:
        self._report = report
        self._is_full = is_full
        self._gates = FirstOnes()
        self._causes = FirstOnes()
        self._episodes: dict[tuple[str, str], _Episode] = {}  # by gate and cause: a user's gate may have several causes

    @property
    def is_watched(self) -> bool:
        """Whether a gate is saturated."""
        return bool(self._episodes)

    def refused(self, event: events.SessionRefused) -> None:
        """Record a refusal."""
        if event.mode == "shadow" or not event.is_overload:
            return
        now = time.monotonic()
        with COUNTING:
            key = self._gates(event.gate), self._causes(event.cause)
            if begins := (episode := self._episodes.get(key)) is None:
                episode = self._episodes[key] = _Episode(now)
            episode.refused += 1
            episode.last = now
        if begins:
            self._report(events.GateSaturated(*key, event.usage, event.limit))

    def forget(self) -> None:
        """Reset in a child process."""
        self._episodes.clear()

    def check(self) -> None:
        """Report the gates that have recovered."""
        for key, episode in [*self._episodes.items()]:
            if time.monotonic() - episode.last < RECOVERED_AFTER_S or self._is_full(key[0]):
                continue
            with COUNTING:
                is_over = time.monotonic() - episode.last >= RECOVERED_AFTER_S
                is_over = is_over and self._episodes.pop(key, None) is not None
            if is_over:
                self._report(events.GateRecovered(*key, episode.refused, episode.last - episode.first))


@dataclass(slots=True)
class _Episode:
    first: float
    last: float = 0.0
    refused: int = 0
