"""Clients: what one sees of its connection, in one line; and clients that misbehave."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import socket
import struct
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx
import httpx_ws
import websockets.exceptions
import websockets.sync.client

from .servers import Running

_Result = TypeVar("_Result")

REF = re.compile(r"internal error; ref=([0-9A-HJKMNP-TV-Z]{12})")


@dataclass(frozen=True)
class Seen:
    """End of a connection: by HTTP, by a close code (1006 without a close frame), or by neither."""

    code: int | None = None
    reason: str = ""
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""
    subprotocol: str | None = None
    received: tuple[str, ...] = ()
    open: bool = False

    def __str__(self) -> str:
        if self.open:
            return "open"
        if self.status is not None:
            return f"HTTP {self.status}"
        return "no answer" if self.code is None else f"{self.code} {self.reason}".strip()

    @property
    def ref(self) -> str:
        """Error id in the reason, or in the body of a refusal."""
        found = REF.fullmatch(self.reason) or REF.fullmatch(self.body)
        assert found, self
        return found[1]

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


def connect(
    server: Running,
    path: str,
    *,
    say: str | bytes | None = None,
    origin: Any = None,
    subprotocols: Sequence[Any] | None = None,
    patience: float = 10,
    **options: Any,
) -> Seen:
    """Connect with ``websockets``, send a message if given, and wait for the end for a while."""
    try:
        with websockets.sync.client.connect(
            server.url + path, origin=origin, subprotocols=subprotocols, close_timeout=1, proxy=None, **options
        ) as websocket:
            received: list[Any] = []
            try:
                if say is not None:
                    websocket.send(say)
                while True:
                    received.append(websocket.recv(timeout=patience))
            except TimeoutError:
                return Seen(received=tuple(received), open=True)
            except websockets.exceptions.ConnectionClosed as closed:
                frame = closed.rcvd
                code, reason = (1006, "") if frame is None else (frame.code, frame.reason)
                subprotocol = websocket.subprotocol
                return Seen(code, reason, subprotocol=subprotocol, received=tuple(received))
    except websockets.exceptions.InvalidStatus as refused:
        response = refused.response
        headers = tuple(response.headers.raw_items())
        return Seen(status=response.status_code, headers=headers, body=bytes(response.body or b"").decode())
    except websockets.exceptions.InvalidMessage:
        return Seen()


def connect_with_httpx_ws(server: Running, path: str) -> Seen:
    """Connect with httpx-ws, and wait for the end."""
    transport = httpx.HTTPTransport(verify=False)
    websocket: httpx_ws.WebSocketSession
    try:
        with (
            httpx.Client(transport=transport, trust_env=False, timeout=10) as client,
            httpx_ws.connect_ws(server.url.replace("ws", "http", 1) + path, client) as websocket,
        ):
            try:
                while True:
                    websocket.receive(timeout=10)
            except httpx_ws.WebSocketDisconnect as closed:
                return Seen(closed.code, closed.reason or "")
            except httpx_ws.WebSocketNetworkError:
                return Seen(1006)
    except httpx_ws.WebSocketUpgradeError as refused:
        response = refused.response
        return Seen(status=response.status_code, headers=tuple(response.headers.items()))


def handshake(path: str | bytes, *, extra: bytes = b"") -> bytes:
    """Return the bytes of a client's handshake."""
    key = base64.b64encode(os.urandom(16))
    path = path if isinstance(path, bytes) else path.encode()
    return (
        b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n" + extra + b"\r\n"
    )


class Raw:
    """Client over a plain socket, which answers nothing by itself."""

    def __init__(
        self, server: Running, path: str | bytes = "/echo", *, extra: bytes = b"", behind: bytes = b""
    ) -> None:
        self.socket = server.connect()
        self.socket.sendall(handshake(path, extra=extra) + behind)
        self._data = bytearray()

    def _read(self, enough: Callable[[], bool]) -> None:
        while not enough():
            received = self.socket.recv(65536)
            if not received:
                raise ConnectionError(f"the server left after {bytes(self._data[:200])!r}")
            self._data += received

    def answer(self) -> int:
        """Return the status of the HTTP response."""
        self._read(lambda: b"\r\n\r\n" in self._data)
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        return int(head.split()[1])

    def frame(self) -> tuple[int, bytes]:
        """Return the opcode and the payload of the next frame; a server does not mask."""
        self._read(lambda: len(self._data) >= 2)
        length, start = self._data[1] & 127, 2
        if length > 125:
            start = 4 if length == 126 else 10
            self._read(lambda: len(self._data) >= start)
            length = int.from_bytes(self._data[2:start])
        self._read(lambda: len(self._data) >= start + length)
        frame = self._data[0] & 15, bytes(self._data[start : start + length])
        del self._data[: start + length]
        return frame

    def close_frame(self) -> Seen:
        """Skip to the close frame; return it as seen."""
        while (frame := self.frame())[0] != 8:
            pass
        payload = frame[1]
        return Seen(int.from_bytes(payload[:2]) if payload else 1005, payload[2:].decode())

    def send(self, opcode: int, payload: bytes) -> None:
        """Send one short frame, masked with zeros."""
        self.socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + b"\0\0\0\0" + payload)

    def vanish(self) -> None:
        """Reset the connection, without a close frame and FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()


def tell(server: Running, guard: str = "", **what: Any) -> Any:
    """Tell ``guard`` something; return all guards' snapshots."""
    assert not isinstance(server.address, str)
    host, port = server.address
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=60)) as connection:
        # Not by httpx, which takes ten times as long: those who wait ask often.
        connection.request("GET", f"/{guard}?{urllib.parse.urlencode(what)}")
        return json.load(connection.getresponse())


def snapshot(server: Running, guard: str = "") -> Any:
    return tell(server)[guard]


def held(server: Running, guard: str = "") -> int:
    """Return how many sessions count: open and leaving ones."""
    state = snapshot(server, guard)
    return int(state["open"] + state["leaving"])


def wait_until(condition: Callable[[], _Result], within: float = 60) -> _Result:
    """Return the result of ``condition`` as soon as it is true, or after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not (result := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return result


def is_empty(server: Running, guard: str) -> Callable[[], bool]:
    return lambda: held(server, guard) == 0


HINT = re.compile(r"try again later; retry_after=([0-9]+\.[0-9]); cause=(full|client|gate)")
