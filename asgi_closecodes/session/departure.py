"""The connection of a session that is over: whether the server still holds it, and for how long that counts.

After a close each server keeps the socket of a silent peer for a time of its own. ``receive`` does not tell for how
long: uvicorn's returns the application's own close, granian's a disconnect whatever the peer does. The transport tells,
if public attributes of the server's ``send`` lead there. If not, there is nothing to wait for: the connection ends when
the application returns (granian), or soon after (daphne).
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
"""Longer than that of admitted sessions: refused ones hold no permit that another session waits for."""
_MAX_CHECKS_PER_SECOND = 2000
"""Checks of all connections together, at 20 us each."""


class Step(enum.Enum):
    """Next step with a connection."""

    WAIT = "the server holds it"
    ABORT = "it has been held for as long as a close may take"
    GONE = "the server does not hold it"
    ABANDON = "it has been held for so long that it counts no more"


class Departure:
    """Decides how long a held connection counts, and when it is aborted. Does nothing itself.

    :param now: start of the wait, in monotonic seconds.
    :param deadline: after which the connection is aborted.
    :param abandon_at: returns when it stops counting; that may change meanwhile.
    :param is_refused: whether its session was never admitted.
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
        """Return the step to take now."""
        if not is_held:
            return Step.GONE
        if not self._has_aborted and self.deadline.is_over(now):
            self._has_aborted = True
            return Step.ABORT
        return Step.ABANDON if now >= self._abandon_at() else Step.WAIT

    def delay(self, now: float, waiting: int) -> float:
        """Return the seconds until the next check: few at first, later a share of the time waited so far.

        :param waiting: number of connections being waited for: the more, the less often each is checked.
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
        """Whether it has not been aborted yet."""
        return not self._has_aborted


class Departures:
    """Connections of a guard that are held after their session."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[Departure, EventLoop] = {}

    @property
    def refused(self) -> int:
        """Number of those whose session was refused."""
        with COUNTING:
            return sum(departure.is_refused for departure in self._waiting)

    def drop(self, loops: Container[object]) -> None:
        """Forget the connections of event loops that are gone."""
        with COUNTING:
            for departure in [one for one, loop in self._waiting.items() if loop.is_among(loops)]:
                del self._waiting[departure]

    async def wait(self, connection: Connection, departure: Departure, *, is_closed_here: bool) -> bool:
        """Wait until ``connection`` is gone; return False if it was abandoned.

        It is aborted in time in any case, also if this is cancelled.
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
        except GeneratorExit:  # the event loop is gone, or this is a child process
            raise
        except BaseException:
            connection.cancel(departure.deadline, is_closed_here=is_closed_here)
            raise
        finally:
            with COUNTING:
                self._waiting.pop(departure, None)
