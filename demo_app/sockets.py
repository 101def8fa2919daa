"""Registry of open WebSockets, for a server that does not end them when it stops."""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send


class Sockets:
    """Serve ``app``, and end its WebSockets on demand."""

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
        """Cancel the handlers of all open WebSockets; the middleware closes its own with 1012."""
        for one in self._open:
            one.cancel()
