"""The connection of a session that is over: whether the server still holds it, and for how long that counts.

After a close each server keeps the socket of a peer that reads or answers nothing for a time of its own. Its words are
no proof: uvicorn's ``receive`` returns the application's own close, granian's a disconnect whatever the peer does. Its
transport is proof, where the ``send`` that it handed over leads there by public attributes. Where nothing does, nothing
is waited for: the return of the application ends the connection (granian), or the server does so soon (daphne).
"""

from __future__ import annotations

import enum
import time
from collections.abc import Container

import anyio
import anyio.lowlevel

from asgi_closecodes.concurrency import COUNTING, EventLoop, running_loop

from .connection import Connection
from .patience import Patience

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

    :param now: when the wait for it begins.
    :param patience: after which it is aborted.
    :param abandon_at: when it counts no more.
    """

    __slots__ = ("_abandon_at", "_began_at", "_has_aborted", "patience")

    def __init__(self, now: float, patience: Patience, abandon_at: float) -> None:
        self._began_at = now
        self._abandon_at = abandon_at
        self._has_aborted = False
        self.patience = patience

    def step(self, now: float, *, is_held: bool) -> Step:
        """Return what is to be done now."""
        if not is_held:
            return Step.GONE
        if not self._has_aborted and self.patience.is_over(now):
            self._has_aborted = True
            return Step.ABORT
        return Step.ABANDON if now >= self._abandon_at else Step.WAIT

    def delay(self, now: float, waiting: int) -> float:
        """Return the seconds until the next look: few at first, and later a quarter of those that it has taken.

        :param waiting: connections that are waited for: the more they are, the less each is looked at.
        """
        due = self._abandon_at if self._has_aborted else min(self.patience.ask_at, self._abandon_at)
        longest = max(_LONGEST_DELAY_S, waiting / _MOST_LOOKS_PER_SECOND)
        return max(min((now - self._began_at) / 4 + _FIRST_DELAY_S, longest, due - now), 0.0)

    @property
    def is_to_be_aborted(self) -> bool:
        """Whether that has not been done."""
        return not self._has_aborted


class Departures:
    """The connections of a guard that are waited for."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[Departure, tuple[EventLoop, bool]] = {}

    @property
    def refused(self) -> int:
        """Those of sessions that were refused."""
        with COUNTING:
            return sum(is_refused for _, is_refused in self._waiting.values())

    def drop(self, loops: Container[object]) -> None:
        """Wait for none of these event loops' any more, which are gone."""
        with COUNTING:
            for departure in [one for one, (loop, _) in self._waiting.items() if loop.is_among(loops)]:
                del self._waiting[departure]

    async def wait(self, connection: Connection, departure: Departure, *, is_closed_here: bool, refused: bool) -> bool:
        """Wait until ``connection`` is gone; return False if it was given up.

        It is aborted in time even then, and if this is cancelled.
        """
        with COUNTING:
            self._waiting[departure] = EventLoop(running_loop()), refused
        try:
            while True:
                now = time.monotonic()
                match departure.step(now, is_held=connection.is_held(is_closed_here=is_closed_here)):
                    case Step.GONE:
                        return True
                    case Step.ABANDON:
                        if departure.is_to_be_aborted:
                            connection.abort_later(departure.patience, is_closed_here=is_closed_here)
                        return False
                    case Step.ABORT:
                        connection.abort()
                        await anyio.lowlevel.checkpoint()
                    case Step.WAIT:
                        await anyio.sleep(departure.delay(now, len(self._waiting)))
        except GeneratorExit:  # the coroutine is thrown away: its event loop is gone, or this is a child process
            raise
        except BaseException:
            connection.cancel(departure.patience, is_closed_here=is_closed_here)
            raise
        finally:
            with COUNTING:
                self._waiting.pop(departure, None)
