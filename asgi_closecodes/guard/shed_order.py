"""Order in which sessions are shed."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Container
from typing import Any, Literal, TypeAlias

import anyio.lowlevel

from asgi_closecodes.session import Session

Order: TypeAlias = Literal["newest", "oldest", "idle"] | Callable[[Session], Any]
"""Order of shedding: by age, by time since the last message, or by a sort key."""

SETTLED_AFTER_S = 10.0
"""Seconds after which a session may be shed like any other: younger ones go last."""

_CHUNK = 500
"""Sessions that are sorted in one turn of the event loop."""


class ShedOrder:
    """Chooses sessions in ``order``.

    :param order_failed: called with the exception of a custom order; the newest go first then.
    :param last_message_at: returns the time that the order ``idle`` compares.
    :param clock: monotonic seconds.
    :param busy: busy sessions, which go after others.
    """

    __slots__ = ("_busy", "_clock", "_last_message_at", "_order_failed", "order")

    def __init__(
        self,
        order: Order,
        order_failed: Callable[[Exception], object],
        last_message_at: Callable[[Session], float],
        clock: Callable[[], float] = time.monotonic,
        busy: Container[Session] = (),
    ) -> None:
        self.order: Order = order
        self._order_failed = order_failed
        self._last_message_at = last_message_at
        self._busy = busy
        self._clock = clock

    async def choose(self, sessions: Collection[Session], count: int) -> list[Session]:
        """Return the ``count`` sessions to go first, of those that are not leaving yet.

        Last go those that are exempt or younger than 10 s, before them busy ones, before them important ones. Among
        equals ``order`` decides. Other tasks run during the pass over the sessions.
        """
        if count <= 0:
            return []
        candidates = list(sessions)
        try:
            return await _first(candidates, count, self._key(self.order))
        except Exception as error:
            self._order_failed(error)
            return await _first(candidates, count, self._key("newest"))

    def _key(self, order: Order) -> Callable[[Session], Any]:
        now, busy = self._clock(), self._busy
        by: Callable[[Session], Any]
        if order == "newest":
            by = _youth
        elif order == "oldest":
            by = _arrival
        elif order == "idle":
            by = self._last_message_at
        else:
            by = order
        return lambda session: (
            session.shed_exempt or now - session.arrived_at < SETTLED_AFTER_S,
            session in busy,
            -session.priority,
            by(session),
        )


def _youth(session: Session) -> float:
    return -session.arrived_at


def _arrival(session: Session) -> float:
    return session.arrived_at


async def _first(sessions: list[Session], count: int, key: Callable[[Session], Any]) -> list[Session]:
    # In chunks, each with the first of those before: no turn of the event loop sorts all sessions.
    first: list[Session] = []
    chunk = max(_CHUNK, count)
    for start in range(0, len(sessions), chunk):
        staying = [session for session in sessions[start : start + chunk] if not session.is_leaving]
        first = heapq.nsmallest(count, first + staying, key)
        await anyio.lowlevel.checkpoint()
    return first
