"""The connection of a session that is over: whether the server still holds it, and for how long that counts.

After a close each server keeps the socket of a silent peer for a time of its own. ``receive`` does not tell for how
long: uvicorn's returns the application's own close, granian's a disconnect whatever the peer does. The transport tells,
if public attributes of the server's ``send`` lead there. If not, there is nothing to wait for: the connection ends when
the application returns (granian), or soon after (daphne).
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import deque
from collections.abc import Callable, Container
from typing import Protocol

import anyio
import anyio.lowlevel

from asgi_closecodes.concurrency import COUNTING, EventLoop, on_asyncio, running_loop

from .connection import Connection
from .progress_deadline import ProgressDeadline

_FIRST_DELAY_S = 0.005
"""A peer nearby has answered by then. After 1 ms a busy server has not come to it, and looks again: in a storm of
crashes that took a tenth of its time."""
_LONGEST_DELAY_S = 0.1
_MAX_CHECKS_PER_SECOND = 2000
"""Checks of the connections of admitted sessions together, at 20 us each."""
_REFUSED_DELAY_S = 0.02
"""Between two looks at the refused ones. Who is kept for longer is in the last generation of the garbage collector."""
_LONGEST_REFUSED_DELAY_S = 0.25
"""However many there are: each is aborted in time, or they pile up while many clients ignore the close."""
_CHECKS_A_TURN = 100
"""Checks of refused sessions in one turn of the event loop."""


class Step(enum.Enum):
    """Next step with a connection."""

    WAIT = "the server holds it"
    ABORT = "it has been held for as long as a close may take"
    GONE = "the server does not hold it"
    ABANDON = "it has been held for so long that it counts no more"


WAIT, ABORT, GONE, ABANDON = Step  # by themselves: a look into an Enum takes a thousand instructions


class Departure:
    """Decides how long a held connection counts, and when it is aborted. Does nothing itself.

    :param now: start of the wait, in monotonic seconds.
    :param deadline: after which the connection is aborted.
    :param abandon_at: returns when it stops counting; that may change meanwhile.
    """

    __slots__ = ("_abandon_at", "_began_at", "_has_aborted", "deadline")

    def __init__(self, now: float, deadline: ProgressDeadline, abandon_at: Callable[[], float]) -> None:
        self._began_at = now
        self._abandon_at = abandon_at
        self._has_aborted = False
        self.deadline = deadline

    def step(self, now: float, *, is_held: bool) -> Step:
        """Return the step to take now."""
        if not is_held:
            return GONE
        if not self._has_aborted and self.deadline.is_over(now):
            self._has_aborted = True
            return ABORT
        return ABANDON if now >= self._abandon_at() else WAIT

    def delay(self, now: float, waiting: int) -> float:
        """Return the seconds until the next check: few at first, later a share of the time waited so far.

        :param waiting: number of connections being waited for: the more, the less often each is checked.
        """
        due = self._abandon_at()
        if not self._has_aborted:
            due = min(due, self.deadline.check_at)
        longest = max(_LONGEST_DELAY_S, waiting / _MAX_CHECKS_PER_SECOND)
        return max(min((now - self._began_at) / 4 + _FIRST_DELAY_S, longest, due - now), 0.0)

    @property
    def is_to_be_aborted(self) -> bool:
        """Whether it has not been aborted yet."""
        return not self._has_aborted


class Refused(Protocol):
    """Session that was never admitted, and whose connection is held."""

    def departure(self, connection: Connection, began_at: float) -> Departure:
        """Return how long ``connection`` counts."""

    def report_abandoned(self, began_at: float) -> None:
        """Report that its connection counts no more."""


class _RefusedConnection:
    """Connection of a refused session."""

    __slots__ = ("began_at", "connection", "departure", "is_closed_here", "session")

    def __init__(self, connection: Connection, session: Refused, began_at: float, *, is_closed_here: bool) -> None:
        self.connection = connection
        self.session = session
        self.began_at = began_at
        self.is_closed_here = is_closed_here
        self.departure: Departure | None = None  # most connections are gone at the first look


class Departures:
    """Connections of a guard that are held after their session.

    :param spawn: runs a function in the background.
    """

    __slots__ = ("_refused", "_spawn", "_waiting")

    def __init__(self, spawn: Callable[..., object]) -> None:
        self._spawn = spawn
        self._waiting: dict[Departure, EventLoop] = {}
        self._refused: dict[object, deque[_RefusedConnection]] = {}  # by event loop: asyncio's, or trio's token

    @property
    def refused(self) -> int:
        """Number of those whose session was refused."""
        with COUNTING:
            return sum(map(len, self._refused.values()))

    def drop(self, loops: Container[object]) -> None:
        """Forget the connections of event loops that are gone."""
        with COUNTING:
            for departure in [one for one, loop in self._waiting.items() if loop.is_among(loops)]:
                del self._waiting[departure]
            for gone in [loop for loop in self._refused if loop in loops]:
                self._refused.pop(gone).clear()  # the task that looks after them may be kept

    async def wait(self, connection: Connection, departure: Departure, *, is_closed_here: bool) -> bool:
        """Wait until ``connection``, which was found held, is gone; return False if it was abandoned.

        It is aborted in time in any case, also if this is cancelled.
        """
        with COUNTING:
            self._waiting[departure] = EventLoop(running_loop())
        sleep = asyncio.sleep if on_asyncio() else anyio.sleep  # which takes half as long again
        step = WAIT
        try:
            while step is WAIT or step is ABORT:
                if step is ABORT:
                    await anyio.lowlevel.checkpoint()
                else:
                    await sleep(departure.delay(time.monotonic(), len(self._waiting)))
                step = _take_step(connection, departure, is_closed_here=is_closed_here)
            return step is GONE
        except GeneratorExit:  # the event loop is gone, or this is a child process
            raise
        except BaseException:
            connection.cancel(departure.deadline, is_closed_here=is_closed_here)
            raise
        finally:
            with COUNTING:
                self._waiting.pop(departure, None)

    def refuse(
        self, connection: Connection, session: Refused, loop: object, began_at: float, *, is_closed_here: bool
    ) -> None:
        """Count the connection of a refused session until it is gone, while its application returns.

        One task looks after those of an event loop: a task that waits for each would take as long as the refusal.

        :param loop: the event loop that runs here: asyncio's, or trio's token.
        :param began_at: when this side began to close, in monotonic seconds.
        """
        with COUNTING:
            if is_first := (held := self._refused.get(loop)) is None:
                held = self._refused[loop] = deque()
            held.append(_RefusedConnection(connection, session, began_at, is_closed_here=is_closed_here))
        if is_first:
            self._spawn(self._look_after, loop, held)

    async def _look_after(self, loop: object, held: deque[_RefusedConnection]) -> None:
        try:
            while held:
                delay = max(_REFUSED_DELAY_S, len(held) / _MAX_CHECKS_PER_SECOND)
                await anyio.sleep(min(delay, _LONGEST_REFUSED_DELAY_S))
                for number in range(1, len(held) + 1):
                    counts = _look_at(held[0])
                    held.rotate(-1)
                    if not counts:
                        held.pop()
                    if not number % _CHECKS_A_TURN:
                        await anyio.lowlevel.checkpoint()
        except GeneratorExit:
            raise
        except BaseException:
            for one in held:
                departure = one.departure or one.session.departure(one.connection, one.began_at)
                one.connection.cancel(departure.deadline, is_closed_here=one.is_closed_here)
            raise
        finally:
            with COUNTING:
                if self._refused.get(loop) is held:
                    del self._refused[loop]


def _look_at(held: _RefusedConnection) -> bool:
    """Return whether a refused session's connection counts on."""
    connection = held.connection
    if not connection.is_held(is_closed_here=held.is_closed_here):
        return False
    if held.departure is None:
        held.departure = held.session.departure(connection, held.began_at)
    step = _take_step(connection, held.departure, is_closed_here=held.is_closed_here)
    if step is ABANDON:
        held.session.report_abandoned(held.began_at)
    return step is not ABANDON


def _take_step(connection: Connection, departure: Departure, *, is_closed_here: bool) -> Step:
    step = departure.step(time.monotonic(), is_held=connection.is_held(is_closed_here=is_closed_here))
    if step is ABORT:
        connection.abort()
    elif step is ABANDON and departure.is_to_be_aborted:
        connection.abort_later(departure.deadline, is_closed_here=is_closed_here)
    return step
