"""Server side of one WebSocket, in memory: a peer that sends given messages, and then leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self, TypeVar

import anyio.lowlevel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_Event = TypeVar("_Event")


class Peer:
    """Peer that connects, sends ``says``, and leaves; it keeps every message that the application sends.

    :param point: awaited at each place where a server may be cancelled: before a message in, after a message out.
    """

    def __init__(
        self, *says: str, point: Callable[[], Awaitable[object]] = anyio.lowlevel.checkpoint, **scope: Any
    ) -> None:
        self.scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "server": ("testserver", 80),
            "client": ("192.0.2.1", 50000),
            "root_path": "",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "headers": [],
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
            **scope,
        }
        self.sent: list[Message] = []
        self._point = point
        self._says: list[Message] = [
            {"type": "websocket.connect"},
            *({"type": "websocket.receive", "text": text} for text in says),
            {"type": "websocket.disconnect", "code": 1001, "reason": ""},
        ]

    async def receive(self) -> Message:
        await self._point()
        return self._says.pop(0) if len(self._says) > 1 else self._says[0]

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        await self._point()

    async def visit(self, app: ASGIApp) -> Self:
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def heard(self) -> list[str]:
        """Types of the messages that the application sent, without their common prefix."""
        return [message["type"].removeprefix("websocket.") for message in self.sent]

    @property
    def closed(self) -> tuple[int, str]:
        """Code and reason of the only close."""
        [close] = [message for message in self.sent if message["type"] == "websocket.close"]
        return close.get("code", 1000), close.get("reason") or ""

    @property
    def status(self) -> int:
        """HTTP status that answered the handshake."""
        [start] = [message for message in self.sent if message["type"] == "websocket.http.response.start"]
        return int(start["status"])


class Handler:
    """ASGI application that accepts, waits for its peer to leave, and raises ``error`` if given."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        await receive()
        await send({"type": "websocket.accept"})
        if self.error is not None:
            raise self.error
        while (await receive())["type"] != "websocket.disconnect":
            pass


def events_of(kind: type[_Event], events: Iterable[object]) -> list[_Event]:
    """Return the ``events`` of class ``kind``."""
    return [event for event in events if isinstance(event, kind)]


async def get(app: ASGIApp, path: str = "/") -> list[Message]:
    """Return the messages with which ``app`` answers a GET."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "root_path": ""}
    await app(scope, receive, send)
    return sent
