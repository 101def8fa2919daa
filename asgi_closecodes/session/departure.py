"""The connection of a session that is over: whether the server still holds it, and for how long that counts.

After a close each server keeps the socket of a peer that reads or answers nothing for a time of its own. Its words are
no proof: uvicorn's ``receive`` returns the application's own close, granian's a disconnect whatever the peer does. Its
transport is proof, where the ``send`` that it handed over leads there by public attributes. Where nothing does, nothing
is waited for: the return of the application ends the connection (granian), or the server does so soon (daphne).
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Container

import anyio
import anyio.lowlevel

from asgi_closecodes.concurrency import COUNTING, EventLoop, running_loop

from .connection import Connection
from .progress_deadline import ProgressDeadline

_FIRST_DELAY_S = 0.001
_LONGEST_DELAY_S = 0.1
_LONGEST_DELAY_OF_REFUSED_S = 0.25
"""Longer: nobody waits for their permits, since they have none."""
_MAX_CHECKS_PER_SECOND = 2000
"""Checks of all connections that are waited for together: 20 us each."""


class Step(enum.Enum):
    """The next step with a connection."""

    WAIT = "the server holds it"
    ABORT = "it has been held for as long as a close may take"
    GONE = "the server does not hold it"
    ABANDON = "it has been held for so long that it counts no more"


class Departure:
    """Decides how long a connection that is held counts, and when it is aborted. It does nothing itself.

    :param now: when the wait for it begins.
    :param deadline: after which it is aborted.
    :param abandon_at: tells when it counts no more, which may change meanwhile.
    :param is_refused: whether it was never admitted.
    """

    __slots__ = ("_abandon_at", "_began_at", "_has_aborted", "deadline", "is_refused")

    def __init__(
        self, now: float, deadline: ProgressDeadline, abandon_at: Callable[[], float], *, is_refused: bool = False
    ) -> None:
        self._began_at = now
        self._abandon_at = abandon_at
        self._has_aborted = False
        self.is_refused = is_refused
        self.deadline = deadline

    def step(self, now: float, *, is_held: bool) -> Step:
        """Return what is to be done now."""
        if not is_held:
            return Step.GONE
        if not self._has_aborted and self.deadline.is_over(now):
            self._has_aborted = True
            return Step.ABORT
        return Step.ABANDON if now >= self._abandon_at() else Step.WAIT

    def delay(self, now: float, waiting: int) -> float:
        """Return the seconds until the next check: few at first, and later a share of those that it has taken.

        :param waiting: connections that are waited for: the more there are, the less often each is checked.
        """
        due = self._abandon_at()
        if not self._has_aborted:
            due = min(due, self.deadline.check_at)
        longest = _LONGEST_DELAY_OF_REFUSED_S if self.is_refused else _LONGEST_DELAY_S
        longest = max(longest, waiting / _MAX_CHECKS_PER_SECOND)
        share = 1.0 if self.is_refused else 0.25
        return max(min((now - self._began_at) * share + _FIRST_DELAY_S, longest, due - now), 0.0)

    @property
    def is_to_be_aborted(self) -> bool:
        """Whether that has not been done."""
        return not self._has_aborted


class Departures:
    """The connections of a guard that are waited for."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[Departure, EventLoop] = {}

    @property
    def refused(self) -> int:
        """Those of sessions that were refused."""
        with COUNTING:
            return sum(departure.is_refused for departure in self._waiting)

    def drop(self, loops: Container[object]) -> None:
        """Wait for none of these event loops' any more, which are gone."""
        with COUNTING:
            for departure in [one for one, loop in self._waiting.items() if loop.is_among(loops)]:
                del self._waiting[departure]

    async def wait(self, connection: Connection, departure: Departure, *, is_closed_here: bool) -> bool:
        """Wait until ``connection`` is gone; return False if it was given up.

        It is aborted in time even then, and if this is cancelled.
        """
        with COUNTING:
            self._waiting[departure] = EventLoop(running_loop())
        try:
            while True:
                now = time.monotonic()
                match departure.step(now, is_held=connection.is_held(is_closed_here=is_closed_here)):
                    case Step.GONE:
                        return True
                    case Step.ABANDON:
                        if departure.is_to_be_aborted:
                            connection.abort_later(departure.deadline, is_closed_here=is_closed_here)
                        return False
                    case Step.ABORT:
                        connection.abort()
                        await anyio.lowlevel.checkpoint()
                    case Step.WAIT:
                        await anyio.sleep(departure.delay(now, len(self._waiting)))
        except GeneratorExit:  # the coroutine is thrown away: its event loop is gone, or this is a child process
            raise
        except BaseException:
            connection.cancel(departure.deadline, is_closed_here=is_closed_here)
            raise
        finally:
            with COUNTING:
                self._waiting.pop(departure, None)
