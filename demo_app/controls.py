"""Actions of the page on its server; pages of other sites are refused."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_closecodes import Guard, SettingsError

STALL_S = 1.0
"""Duration of a stall of the event loop."""

BEFORE_STALL_S = 0.3
"""Pause before the stall: the sensor needs a normal sample first."""

MAX_LOOP_LAG_S = 0.6
"""Limit set by the first stall. Not set from the start: a busy machine lags by itself."""


class SameOrigin:
    """Refuse requests from pages of other sites. Clients other than browsers are allowed.

    ``Host`` is one of :func:`hosts.allowed`: DNS rebinding has been refused before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        app = self._app
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            app = PlainTextResponse("only for pages of this server\n", 403)
        await app(scope, receive, send)


def routes(guard: Guard) -> list[Route]:
    """Return the routes that control ``guard`` and its process."""

    async def limit(request: Request) -> Response:
        try:
            guard.update(max_sessions=(await request.json())["max_sessions"])
        except (SettingsError, ValueError, TypeError, LookupError, RecursionError, ClientDisconnect) as error:
            raise HTTPException(400, f'send {{"max_sessions": NUMBER}}: {error}') from error
        return _done()

    async def stall(_request: Request) -> Response:
        if guard.settings.max_loop_lag is None:
            guard.update(max_loop_lag=MAX_LOOP_LAG_S)
        await anyio.sleep(BEFORE_STALL_S)
        time.sleep(STALL_S)  # noqa: ASYNC251 - the mistake to demonstrate
        return _done()

    async def drain(_request: Request) -> Response:
        return _done(BackgroundTask(guard.drain))

    async def resume(_request: Request) -> Response:
        guard.draining = False
        return _done()

    actions: tuple[Callable[[Request], Awaitable[Response]], ...] = (limit, stall, drain, resume)
    return [Route(f"/{action.__name__}", action, methods=["POST"]) for action in actions]


def _done(afterwards: BackgroundTask | None = None) -> Response:
    return Response(status_code=204, background=afterwards)
