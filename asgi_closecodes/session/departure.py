"""The connection of a session that is over: whether the server still holds it, and for how long that counts.

After a close each server keeps the socket of a peer that reads or answers nothing for a time of its own. Its words are
no proof: uvicorn's ``receive`` returns the application's own close, granian's a disconnect whatever the peer does. Its
transport is proof, where the ``send`` that it handed over leads there by public attributes. Where nothing does, nothing
is waited for: the return of the application ends the connection (granian), or the server does so soon (daphne).
"""

from __future__ import annotations

import asyncio
import enum
import time
from typing import Any

import anyio
import anyio.lowlevel

from asgi_closecodes.concurrency import COUNTING

from .channel import Channel

_MOST_HOPS = 6
"""Objects between a server's ``send`` and its transport; hypercorn has three."""

_FIRST_DELAY_S = 0.001
_LONGEST_DELAY_S = 0.05
_MOST_LOOKS_PER_SECOND = 5000
"""Looks at all connections that are waited for together."""


class Connection:
    """A connection whose transport takes the session's messages: it lives on when the application has returned.

    :param transport: what looks like one of asyncio's. It is not believed to work.
    """

    __slots__ = ("_transport",)

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def is_held(self, *, is_closed_here: bool) -> bool:
        """Whether the server holds the socket, though the session is over; False where that cannot be told.

        :param is_closed_here: whether this side has closed, so that the server waits for the peer's answer.
        """
        try:
            return self._is_held(is_closed_here)
        except (Exception, asyncio.CancelledError):  # of an attribute: nothing is awaited
            return False

    def _is_held(self, is_closed_here: bool, /) -> bool:
        transport = self._transport
        if not transport.is_closing():
            return is_closed_here
        if not transport.get_write_buffer_size() and transport.get_extra_info("ssl_object") is None:
            return False  # it is closed in the next turn of the event loop
        socket = transport.get_extra_info("socket")
        return socket is not None and bool(socket.fileno() >= 0)

    def abort(self) -> None:
        """Drop the connection, with what is not sent yet."""
        try:
            self._transport.abort()
        except (Exception, asyncio.CancelledError):
            return

    def abort_later(self, seconds: float, *, is_closed_here: bool) -> asyncio.TimerHandle | None:
        """Abort it if it is still held then, where nobody waits for that."""

        def abort_if_held() -> None:
            if self.is_held(is_closed_here=is_closed_here):
                self.abort()

        try:
            return asyncio.get_running_loop().call_later(seconds, abort_if_held)
        except RuntimeError:  # trio, or the coroutine is thrown away
            return None

    def cancel(self, seconds: float, *, is_closed_here: bool) -> None:
        """Do what is to be done when the wait for it is cancelled: have it aborted in time."""
        self.abort_later(seconds, is_closed_here=is_closed_here)


class StreamConnection(Connection):
    """A connection that the server closes when its application returns: only what is not written keeps the socket."""

    __slots__ = ()

    def _is_held(self, _is_closed_here: bool, /) -> bool:
        return bool(self._transport.get_write_buffer_size() > 0)

    def cancel(self, seconds: float, *, is_closed_here: bool) -> None:  # noqa: ARG002 - at once
        """Abort it: hypercorn's stop waits for what is not written, unless that is cancelled instead of this."""
        self.abort()


class TrioConnection(Connection):
    """A connection of trio's, where nothing is written behind the server's back; and its writes cannot be cancelled."""

    __slots__ = ()

    def _is_held(self, _is_closed_here: bool, /) -> bool:
        return False

    def abort(self) -> None:
        """Close the socket: whoever writes to it or reads from it gets an error."""
        try:
            self._transport.close()
        except (Exception, asyncio.CancelledError):
            return


def connection_of(send: Any) -> Connection | None:
    """Return the connection that a server's ``send`` leads to, or None.

    A protocol of asyncio's has its transport itself; a server over streams has it behind more methods called ``send``.
    Closures are not looked into, but for those that say what they wrap.
    """
    try:
        for _ in range(_MOST_HOPS):
            owner = getattr(getattr(send, "__wrapped__", send), "__self__", None)
            if owner is None:
                return None
            if isinstance(owner, Channel):  # another middleware of this library stands around
                send = getattr(owner, "_send", None)
                continue
            if (found := _connection_at(owner)) is not None:
                return found
            send = getattr(owner, "send", None)
    except (Exception, asyncio.CancelledError):
        return None
    return None


def _connection_at(owner: Any) -> Connection | None:
    if _has_methods(transport := getattr(owner, "transport", None), "is_closing", "abort"):
        return Connection(transport)
    transport = getattr(getattr(owner, "writer", None), "transport", None)
    if _has_methods(transport, "is_closing", "abort", "get_write_buffer_size"):
        return StreamConnection(transport)
    stream = getattr(owner, "stream", None)
    stream = getattr(stream, "transport_stream", stream)  # of TLS
    if _has_methods(stream, "send_all", "aclose") and _has_methods(socket := getattr(stream, "socket", None), "close"):
        return TrioConnection(socket)
    return None


def _has_methods(value: Any, *names: str) -> bool:
    return value is not None and all(callable(getattr(value, name, None)) for name in names)


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
