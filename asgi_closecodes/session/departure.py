"""The connection of a session that is over: whether the server still holds it, and for how long that counts.

After a close each server keeps the socket of a peer that reads or answers nothing for a time of its own. Its words are
no proof: uvicorn's ``receive`` returns the application's own close, granian's a disconnect whatever the peer does. Its
transport is proof, where the ``send`` that it handed over leads there by public attributes. Where nothing does, nothing
is waited for: the return of the application ends the connection (granian), or the server does so soon (daphne).
"""

from __future__ import annotations

import enum
import time

import anyio
import anyio.lowlevel

from asgi_closecodes.concurrency import COUNTING

from .connection import Connection

_FIRST_DELAY_S = 0.001
_LONGEST_DELAY_S = 0.05
_MOST_LOOKS_PER_SECOND = 5000
"""Looks at all connections that are waited for together."""


class Step(enum.Enum):
    """What is to be done about a connection."""

    WAIT = "the server holds it"
    ABORT = "it has been held for as long as a close may take"
    GONE = "the server does not hold it"
    ABANDON = "it has been held for so long that it counts no more"


class Departure:
    """Decides how long a connection that is held counts, and when it is aborted. It does nothing itself.

    :param closed_at: when this side has closed it.
    :param abort_after: seconds from then on.
    :param abandon_after: seconds from then on.
    """

    __slots__ = ("_abandon_at", "_abort_at", "_began_at", "_has_aborted")

    def __init__(self, closed_at: float, now: float, abort_after: float, abandon_after: float) -> None:
        self._began_at = now
        self._abort_at = closed_at + abort_after
        self._abandon_at = closed_at + abandon_after
        self._has_aborted = False

    def step(self, now: float, *, is_held: bool) -> Step:
        """Return what is to be done now."""
        if not is_held:
            return Step.GONE
        if now >= self._abort_at and not self._has_aborted:
            self._has_aborted = True
            return Step.ABORT
        return Step.ABANDON if now >= self._abandon_at else Step.WAIT

    def delay(self, now: float, waiting: int) -> float:
        """Return the seconds until the next look: few at first, and later a quarter of those that it has taken.

        :param waiting: connections that are waited for: the more they are, the less each is looked at.
        """
        due = self._abandon_at if self._has_aborted else min(self._abort_at, self._abandon_at)
        longest = max(_LONGEST_DELAY_S, waiting / _MOST_LOOKS_PER_SECOND)
        return max(min((now - self._began_at) / 4 + _FIRST_DELAY_S, longest, due - now), 0.0)

    def seconds_to_abort(self, now: float) -> float | None:
        """Return the seconds until it is to be aborted, or None if it was."""
        return None if self._has_aborted else max(self._abort_at - now, 0.0)


class Departures:
    """The connections of a guard that are waited for."""

    __slots__ = ("_waiting", "refused")

    def __init__(self) -> None:
        self._waiting = 0
        self.refused = 0
        """Those of sessions that were refused."""

    async def wait(self, connection: Connection, departure: Departure, *, is_closed_here: bool, refused: bool) -> bool:
        """Wait until ``connection`` is gone; return False if it was given up.

        It is aborted in time even then, and if this is cancelled.
        """
        self._count(1, refused)
        try:
            while True:
                now = time.monotonic()
                match departure.step(now, is_held=connection.is_held(is_closed_here=is_closed_here)):
                    case Step.GONE:
                        return True
                    case Step.ABANDON:
                        if (seconds := departure.seconds_to_abort(now)) is not None:
                            connection.abort_later(seconds, is_closed_here=is_closed_here)
                        return False
                    case Step.ABORT:
                        connection.abort()
                        await anyio.lowlevel.checkpoint()
                    case Step.WAIT:
                        await anyio.sleep(departure.delay(now, self._waiting))
        except BaseException:
            seconds = departure.seconds_to_abort(time.monotonic())
            connection.cancel(seconds or 0, is_closed_here=is_closed_here)
            raise
        finally:
            self._count(-1, refused)

    def _count(self, more: int, refused: bool) -> None:
        with COUNTING:
            self._waiting += more
            self.refused += more if refused else 0
