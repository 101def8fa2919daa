"""The socket of a session's peer, as far as public attributes of the server's ``send`` lead there.

So it is under uvicorn and hypercorn. What is found is not believed to work: whatever it raises, the answer is unknown.
"""

from __future__ import annotations

import array
from typing import Any

from .session import Session

_MAX_HOPS = 6
"""Objects between a server's ``send`` and its socket; hypercorn has three."""


def link_of(session: Session) -> Any:
    """Return the transport of asyncio's or the socket that the server sends to, or None."""
    try:
        return _link_of(session._send)  # noqa: SLF001 - its own kind
    except Exception:
        return None


def _link_of(send: Any) -> Any:
    for _ in range(_MAX_HOPS):
        owner = getattr(send, "__self__", None)
        if isinstance(owner, Session):  # another middleware of this library stands around
            send = owner._send  # noqa: SLF001 - its own kind
            continue
        transport = getattr(owner, "transport", None) or getattr(getattr(owner, "writer", None), "transport", None)
        if transport is not None:
            return transport
        stream = getattr(owner, "stream", None)  # of trio, maybe with TLS around it
        if (socket := getattr(getattr(stream, "transport_stream", stream), "socket", None)) is not None:
            return socket
        send = getattr(owner, "send", None)
    return None


def is_lost(link: Any) -> bool:
    """Whether the server has closed ``link``, or the peer has; False if that is unknown."""
    try:
        return bool(link.is_closing()) if hasattr(link, "is_closing") else link.fileno() < 0
    except Exception:
        return False


def unsent_bytes(link: Any) -> int | None:
    """Return the bytes that the peer's system has not taken yet; None if that is unknown, as on Windows.

    Fewer of them are the only sign that a slow peer reads: a server's ``send`` may wait for minutes until there is
    room for a whole message again.
    """
    size = array.array("i", [0])
    try:
        from fcntl import ioctl  # noqa: PLC0415 - not on every system
        from termios import TIOCOUTQ  # noqa: PLC0415

        socket = link.get_extra_info("socket") if hasattr(link, "get_extra_info") else link
        ioctl(socket.fileno(), TIOCOUTQ, size)
    except Exception:  # it is closed, or no socket at all
        return None
    return size[0]
