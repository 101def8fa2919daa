"""One session of the load: a handshake like a browser's, then messages that cost next to nothing.

The command has to use less CPU than the server, or it would measure itself. So a message is compressed and masked only
once, for all sessions. It is compressed as a session's first message, which is valid at any time. Answers are counted,
not decoded.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.uri import WebSocketURI

_CAUSE = re.compile(r"; *cause=([A-Za-z0-9_.-]{1,32}) *(?=;|\Z)")
_CLOSE, _PING, _PONG = 8, 9, 10
_SWITCHING = b"HTTP/1.1 101"


@dataclass(frozen=True, slots=True)
class Refusal:
    """End of a session by the server, or its refusal to begin one."""

    code: int | None = None
    """Close code; 1006 for a lost connection."""
    status: int | None = None
    """Status of an HTTP response instead of a session."""
    reason: str = ""
    location: str = ""
    """Target of a redirect."""

    @property
    def cause(self) -> str | None:
        """Cause in the close reason, as this library writes it."""
        found = _CAUSE.findall(self.reason)
        return found[-1] if found else None

    def __str__(self) -> str:
        what = f"close {self.code}" if self.status is None else f"HTTP {self.status}"
        return f"{what} ({self.reason[:123]})" if self.reason else what


class NoWebSocket(Exception):  # noqa: N818 - what the server is
    """The server answered the handshake with something else."""


@dataclass(frozen=True, slots=True)
class Target:
    """Server to connect to, and the options of its sessions."""

    url: WebSocketURI
    headers: Sequence[tuple[str, str]] = ()
    message: str | None = None
    """Message to send; None sends pings."""
    _frames: dict[str, bytes] = field(default_factory=dict)

    def handshake(self) -> ClientProtocol:
        """Return a handshake that offers compression as browsers do."""
        offered = [one.strip() for name, value in self.headers if _is_subprotocol(name) for one in value.split(",")]
        return ClientProtocol(
            self.url,
            extensions=[ClientPerMessageDeflateFactory()],
            subprotocols=offered or None,  # type: ignore[arg-type]
            max_size=None,
        )

    def frame(self, extensions: Sequence[Extension]) -> bytes:
        """Return the frame that all sessions with these ``extensions`` send: a ping, or the compressed message."""
        agreed = repr(extensions)
        if agreed not in self._frames:
            if self.message is None:
                self._frames[agreed] = Frame(Opcode.PING, b"").serialize(mask=True)
            else:
                whole = Frame(Opcode.TEXT, self.message.encode())
                self._frames[agreed] = whole.serialize(mask=True, extensions=extensions)
        return self._frames[agreed]


def _is_subprotocol(name: str) -> bool:
    return name.lower() == "sec-websocket-protocol"


class Connection(asyncio.Protocol):
    """One session of the load.

    :param answered: called with it for each message or pong.
    :param ended: called with it when it is over, unless this side ended it.
    """

    def __init__(
        self, target: Target, answered: Callable[[Connection], None], ended: Callable[[Connection], None]
    ) -> None:
        self.asked_at: float | None = None
        """Time of the message that is not answered yet; None if there is none."""
        self.frame = b""
        """Frame that it sends."""
        self.refusal: Refusal | None = None
        self.response: Response | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._target = target
        self._answered, self._ended = answered, ended
        self._handshake: ClientProtocol | None = target.handshake()
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._skip = 0
        self._is_last = False
        self._is_left = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the handshake."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if (plain := transport.get_extra_info("socket")) is not None and plain.family != socket.AF_UNIX:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert self._handshake is not None
        request = self._handshake.connect()
        request.headers.setdefault("User-Agent", "asgi-closecodes")
        for name in {name for name, _ in self._target.headers if not _is_subprotocol(name)}:
            if name in request.headers:
                del request.headers[name]
        for name, value in self._target.headers:
            if not _is_subprotocol(name):
                request.headers[name] = value
        self._handshake.send_request(request)
        transport.write(b"".join(self._handshake.data_to_send()))

    def data_received(self, data: bytes) -> None:
        """Continue the handshake, or count messages."""
        if self._handshake is None:
            self._frames(data)
            return
        frames = b""
        data = self._head + data
        if data.startswith(_SWITCHING[: len(data)]):
            head, end, frames = data.partition(b"\r\n\r\n")
            if not end:
                self._head = data
                return
            data = head + end
        self._head = b""
        self._handshake.receive_data(data)
        self._end_handshake()
        if self._handshake is None and frames:
            self._frames(frames)

    def _end_handshake(self) -> None:
        handshake = self._handshake
        assert handshake is not None
        if handshake.state is not OPEN and handshake.handshake_exc is None:
            return
        self._handshake = None
        handshake.parser.close()  # a cycle, which would keep the compressor's memory
        for event in handshake.events_received():
            if isinstance(event, Response):
                self.response = event
        if handshake.handshake_exc is None:
            self.frame = self._target.frame(handshake.extensions)
            _settle(self.opened, None)
        elif isinstance(error := handshake.handshake_exc, InvalidStatus):
            response = error.response
            body = bytes(response.body or b"").decode("utf-8", "replace")
            reason = body if _CAUSE.search(body) else ""
            location = response.headers.get("Location", "")
            self.refusal = Refusal(status=response.status_code, reason=reason, location=location)
            _settle(self.opened, None)
            self.leave()
        else:
            _settle(self.opened, NoWebSocket(str(error)))
            self.leave()

    def _frames(self, data: bytes) -> None:
        data, position = self._data + data, 0
        size = len(data)
        while True:
            if self._skip:
                taken = min(self._skip, size - position)
                position += taken
                self._skip -= taken
                if self._skip:
                    break
                self._message_part_ends()
            if size - position < 2:
                break
            opcode, length, start = data[position] & 15, data[position + 1] & 127, position + 2
            if length > 125:
                start += 2 if length == 126 else 8
                if size < start:
                    break
                length = int.from_bytes(data[position + 2 : start])
            if opcode < _CLOSE:
                self._is_last = bool(data[position] & 128)
                position, self._skip = start, length
                if not length:
                    self._message_part_ends()
                continue
            if size < start + length:
                break
            position = start + length
            self._control(opcode, data[start:position])
        self._data = data[position:]

    def _message_part_ends(self) -> None:
        if self._is_last:
            self._answered(self)

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self._send(Frame(Opcode.PONG, payload).serialize(mask=True))
        elif opcode == _PONG:
            if self._target.message is None:
                self._answered(self)
        elif opcode == _CLOSE:
            code = struct.unpack_from("!H", payload)[0] if len(payload) > 1 else 1005
            self.refusal = self.refusal or Refusal(code=code, reason=payload[2:].decode("utf-8", "replace"))
            self._send(Frame(Opcode.CLOSE, payload[:2]).serialize(mask=True))
            self._is_over()
            if self._transport is not None:
                self._transport.close()

    def _send(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def ask(self, now: float) -> None:
        """Send the message or the ping."""
        self.asked_at = now
        self._send(self.frame)

    def eof_received(self) -> None:
        """Tell the handshake, if it is not over, that the server has closed."""
        if self._handshake is not None:
            self._handshake.receive_eof()
            self._end_handshake()

    def connection_lost(self, _error: Exception | None) -> None:
        """Record an end without a close."""
        self._transport = None
        if not self._is_left:
            self.refusal = self.refusal or Refusal(code=1006)
        if not self.opened.done():
            self.opened.set_exception(NoWebSocket("the connection was closed before an answer"))
        self._is_over()

    def _is_over(self) -> None:
        if not self._is_left:
            self._is_left = True
            self._ended(self)

    def leave(self) -> None:
        """Abort the connection without a close, since thousands end at once."""
        self._is_left = True
        if self._transport is not None:
            self._transport.abort()


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
