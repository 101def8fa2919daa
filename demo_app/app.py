"""Demo application: handlers with and without the middleware, and a page that compares them."""

from __future__ import annotations

import logging
from typing import Any

from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router, WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.logs import configure_logging

from . import controls, hosts
from .feed import Counted, Feed, Tail
from .handlers import ENDINGS
from .pages import STATIC, Static, page

PAGE = STATIC / "index.html"

_DEFAULTS = {
    "max_sessions": 20,
    "shed_rate": 5,
    "drain_window": 5,
    "max_retry_after": 15,
    "log_stalls": 0.5,
    "reject_with": "close",  # all clients are in one page: together they would seem to hammer
}


class DemoSettings(Settings):
    """Settings with limits that one click reaches, and short times."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add the demo's defaults, below the environment."""
        return *sources, *named.values(), InitSettingsSource(settings_cls, _DEFAULTS)


def create_app() -> Starlette:
    """Create the application, and log JSON lines to stderr from now on.

    :raises SettingsError: if the environment has unusable settings.
    """
    configure_logging(format="json", logger="")
    root = logging.getLogger()
    for earlier in [handler for handler in root.handlers if isinstance(handler, Tail)]:
        root.removeHandler(earlier)
    root.addHandler(tail := Tail())

    guard = Guard(DemoSettings())
    handlers = Router([WebSocketRoute(f"/{ending.__name__.replace('_', '-')}", ending) for ending in ENDINGS])
    bare = Counted(handlers)

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def state(_request: Request) -> Response:
        return JSONResponse(guard.snapshot())

    def shown() -> dict[str, Any]:
        limit = guard.settings.max_sessions
        return {"sessions": len(guard.sessions), "limit": limit, "draining": guard.draining, "bare": bare.sessions}

    same_origin = [Middleware(controls.SameOrigin)]
    return Starlette(
        routes=[
            Route("/", page(PAGE)),
            Route("/healthz", healthz),
            Route("/state", state),
            Mount("/static", Static()),
            Mount("/control", routes=controls.routes(guard), middleware=same_origin),
            WebSocketRoute("/feed", Feed(shown, tail).serve, middleware=same_origin),
            Mount("/bare", bare),
            Mount("/", CloseCodeMiddleware(handlers, guard)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts.allowed(), www_redirect=False)],
        lifespan=lambda _app: guard.lifespan(),
    )
