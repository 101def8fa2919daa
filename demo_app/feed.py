"""What the page is shown of its server: the state and the log, ten times a second, over a socket of its own."""

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
"""Seconds between two messages; a page sees by a longer pause that the event loop stalls."""


class Tail(logging.Handler):
    """The last lines of the log that the page shows: this library's, and what a server complains of."""

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
        """Return the lines that came after ``written`` ones, as far as they are kept, and how many there were."""
        self.acquire()  # servers log in threads of their own
        try:
            start = max(len(self._lines) - (self._written - written), 0)
            return list(islice(self._lines, start, None)), self._written
        finally:
            self.release()


class Counted:
    """Counts the open WebSockets of an application that has no middleware to do so."""

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
    """The socket.

    :param state: returns what changes; sent whole with every message.
    :param tail: the log.
    """

    def __init__(self, state: Callable[[], dict[str, Any]], tail: Tail) -> None:
        self._state = state
        self._tail = tail

    async def serve(self, websocket: WebSocket) -> None:
        """Tell the page until it leaves."""
        await websocket.accept()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tell, websocket)
            # A page has nothing to say; granian tells only here that it left.
            while (await websocket.receive())["type"] != "websocket.disconnect":
                pass
            tasks.cancel_scope.cancel()

    async def _tell(self, websocket: WebSocket) -> None:
        written = 0
        with suppress(WebSocketDisconnect, RuntimeError):  # uvicorn's, in the moment in which the connection is lost
            while True:
                lines, written = self._tail.since(written)
                await websocket.send_json({**self._state(), "lines": lines})
                await anyio.sleep(INTERVAL_S)
