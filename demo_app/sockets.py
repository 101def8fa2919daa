"""The open WebSockets of an application, for a server that does not end them when it stops."""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send


class Sockets:
    """Serves ``app``, whose WebSockets can be ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open: set[anyio.CancelScope] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        with anyio.CancelScope() as one:
            self._open.add(one)
            try:
                await self._app(scope, receive, send)
            finally:
                self._open.discard(one)

    def end(self) -> None:
        """Cancel the handlers of all that are open: the middleware tells those behind it to come back."""
        for one in self._open:
            one.cancel()
