"""Feed of the page: state and log of the server, ten times a second, over its own socket."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_closecodes.logs import JsonFormatter

INTERVAL_S = 0.1
"""Time between two messages; a longer pause shows a stalled event loop."""


class Tail(logging.Handler):
    """Buffer of the last log lines: all of this library, warnings and errors of others."""

    def __init__(self, length: int = 200) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.addFilter(lambda record: record.name.startswith("asgi_closecodes") or record.levelno >= logging.WARNING)
        self._written = 0
        self._lines: deque[str] = deque(maxlen=length)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line of ``record``."""
        try:
            self._lines.append(self.format(record))
            self._written += 1
        except Exception:
            self.handleError(record)

    def since(self, written: int) -> tuple[list[str], int]:
        """Return the kept lines after the first ``written`` ones, and the number of all lines."""
        self.acquire()  # servers log in their own threads
        try:
            start = max(len(self._lines) - (self._written - written), 0)
            return list(islice(self._lines, start, None)), self._written
        finally:
            self.release()


class Counted:
    """Count the open WebSockets of an application without the middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.sessions = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        self.sessions += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.sessions -= 1


class Feed:
    """Socket of the page.

    :param state: returns the state, which each message contains in full.
    :param tail: the log.
    """

    def __init__(self, state: Callable[[], dict[str, Any]], tail: Tail) -> None:
        self._state = state
        self._tail = tail

    async def serve(self, websocket: WebSocket) -> None:
        """Send messages until the page leaves."""
        await websocket.accept()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send, websocket)
            # The page sends nothing; granian reports its disconnect only here.
            while (await websocket.receive())["type"] != "websocket.disconnect":
                pass
            tasks.cancel_scope.cancel()

    async def _send(self, websocket: WebSocket) -> None:
        written = 0
        with suppress(WebSocketDisconnect, RuntimeError):  # raised by uvicorn when the connection is lost
            while True:
                lines, written = self._tail.since(written)
                await websocket.send_json({**self._state(), "lines": lines})
                await anyio.sleep(INTERVAL_S)
