"""The connection behind a server's ``send``, as far as public attributes lead there: uvicorn's and hypercorn's.

Nothing that is found there is trusted. Whatever it raises, the answer is "unknown", and nothing else happens.
"""

from __future__ import annotations

import array
import asyncio
from typing import Any

from .channel import Channel
from .progress_deadline import AbortTimer, ProgressDeadline

_MAX_HOPS = 6
"""Objects between a server's ``send`` and its transport; hypercorn has three."""


class Connection:
    """Connection whose transport takes the session's messages, and which outlives the application's return.

    :param transport: an object that looks like an asyncio transport. It is not trusted to work.
    """

    __slots__ = ("_transport",)

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def is_held(self, *, is_closed_here: bool) -> bool:
        """Whether the server still holds the socket after the session; False if that is unknown.

        :param is_closed_here: whether this side has closed, so that the server waits for the peer's answer.
        """
        try:
            return self._is_held(is_closed_here)
        except (Exception, asyncio.CancelledError):  # raised by an attribute: nothing is awaited
            return False

    def _is_held(self, is_closed_here: bool, /) -> bool:
        transport = self._transport
        if not transport.is_closing():
            return is_closed_here
        if not transport.get_write_buffer_size() and transport.get_extra_info("ssl_object") is None:
            return False  # it is closed in the next turn of the event loop
        socket = transport.get_extra_info("socket")
        return socket is not None and bool(socket.fileno() >= 0)

    @property
    def is_lost(self) -> bool:
        """Whether the server has closed it, or its peer has; False if that is unknown."""
        try:
            return self._is_lost()
        except (Exception, asyncio.CancelledError):
            return False

    def _is_lost(self) -> bool:
        return bool(self._transport.is_closing())

    @property
    def unsent(self) -> int | None:
        """Bytes that the peer's system has not taken yet; None if that is unknown, as on Windows.

        The bytes that the transport buffers count too: the socket's buffer is refilled from them.

        A falling number is the only sign that a slow peer reads. The server's ``send`` may wait for minutes, until
        there is room for a whole message.
        """
        size = array.array("i", [0])
        try:
            from fcntl import ioctl  # noqa: PLC0415 - not on every system
            from termios import TIOCOUTQ  # noqa: PLC0415

            ioctl(self._socket().fileno(), TIOCOUTQ, size)
            return size[0] + self._buffered()
        except (Exception, asyncio.CancelledError):  # the socket is closed, or none at all
            return None

    def _buffered(self) -> int:
        return int(self._transport.get_write_buffer_size())

    def _socket(self) -> Any:
        return self._transport.get_extra_info("socket")

    def abort(self) -> None:
        """Drop the connection, and everything that is not sent yet."""
        try:
            self._transport.abort()
        except (Exception, asyncio.CancelledError):
            return

    def abort_later(self, deadline: ProgressDeadline, *, is_closed_here: bool) -> AbortTimer | None:
        """Abort it after ``deadline`` if it is still held, by a timer: no task waits for that."""
        try:
            return AbortTimer(self, deadline, is_closed_here=is_closed_here)
        except RuntimeError:  # on trio, or the event loop is gone
            return None

    def cancel(self, deadline: ProgressDeadline, *, is_closed_here: bool) -> None:
        """Have the connection aborted in time although the wait for it is cancelled."""
        self.abort_later(deadline, is_closed_here=is_closed_here)


class StreamConnection(Connection):
    """Connection that the server closes when its application returns: only unwritten data keeps the socket."""

    __slots__ = ()

    def _is_held(self, _is_closed_here: bool, /) -> bool:
        return bool(self._transport.get_write_buffer_size() > 0)

    def cancel(self, deadline: ProgressDeadline, *, is_closed_here: bool) -> None:  # noqa: ARG002 - at once
        """Abort it at once: otherwise hypercorn's shutdown waits for the unwritten data."""
        self.abort()


class TrioConnection(Connection):
    """Connection on trio, which buffers nothing, and whose writes cannot be cancelled."""

    __slots__ = ()

    def _is_held(self, _is_closed_here: bool, /) -> bool:
        return False

    def _is_lost(self) -> bool:
        return bool(self._transport.fileno() < 0)

    def _socket(self) -> Any:
        return self._transport

    def _buffered(self) -> int:
        return 0

    def abort(self) -> None:
        """Close the socket: tasks that read from it or write to it get an error."""
        try:
            self._transport.close()
        except (Exception, asyncio.CancelledError):
            return


def connection_of(send: Any, receive: Any) -> Connection | None:
    """Return the connection that a server's ``send`` or ``receive`` leads to, or None.

    An asyncio protocol has its transport itself. A server over streams has it behind more methods called ``send``.
    Middleware outside of this one may have wrapped one of the two, as Starlette wraps ``send`` around its routes and
    mounts. Closures are not followed, except for those with ``__wrapped__``: a connection behind one may be that of
    others, too. Nobody who shares it has the server's own ``receive``.
    """
    try:
        return _connection_behind(send) or _connection_behind(receive)
    except (Exception, asyncio.CancelledError):
        return None


def _connection_behind(call: Any) -> Connection | None:
    for _ in range(_MAX_HOPS):
        if (owner := getattr(call, "__self__", None)) is None:
            owner = getattr(getattr(call, "__wrapped__", None), "__self__", None)
        if owner is None:
            return None
        if isinstance(owner, Channel):  # another middleware of this library is around this one
            return connection_of(owner.server_send, owner.server_receive)
        if (found := _connection_at(owner)) is not None:
            return found
        call = getattr(owner, "send", None) or getattr(owner, "server_receive", None)  # of limited messages
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
    if value is None:
        return False
    for name in names:  # noqa: SIM110 - all() of a generator takes twice as long
        if not callable(getattr(value, name, None)):
            return False
    return True
