"""One server for each framework: the bare application below /bare, beside it the one with the integration."""

import asyncio
import json
from pathlib import PurePath

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Guard, Settings, TryAgainLater
from asgi_closecodes.gates import MaxSessionsPerKey
from asgi_closecodes.logs import configure_logging
from tests.integrations.recipes import follow

configure_logging(format="json")


def make_guard():
    gate = MaxSessionsPerKey(1, key=lambda session: session.key, name="user")
    settings = Settings(max_sessions=20, drain_window=0, log_burst=None)
    return Guard(settings, gate=gate, exceptions={PermissionError: 3003})


class Both:
    """Serve ``bare`` below /bare, controls below /control, and ``app``, which has the middleware."""

    def __init__(self, app, bare, guard):
        self.app, self.bare, self.guard = app, bare, guard

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        top, *rest = PurePath(scope["path"]).parts[1:]
        if top == "control":
            return await self.control(rest[0], receive, send)
        if top == "bare":
            path = scope["path"].removeprefix("/bare")
            return await self.bare({**scope, "path": path, "raw_path": path.encode()}, receive, send)
        return await self.app(scope, receive, send)

    async def control(self, what, receive, send):
        await receive()
        match what:
            case "shed":
                for session in [*self.guard.sessions]:
                    await session.shed("kicked", retry_after=2)
            case "drain":
                await self.guard.drain()
            case "resume":
                self.guard.draining = False
            case "limit":
                self.guard.update(max_sessions=0)
            case "unlimit":
                self.guard.update(max_sessions=20)
        body = json.dumps({**self.guard.snapshot(), "tasks": len(asyncio.all_tasks())}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def with_recipe(title, *, bare, **names):
    """Serve what the recipe of ``title`` makes of ``names``, with the guard of tests."""
    guard = make_guard()

    def wrap(app, _=None):
        return CloseCodeMiddleware(app, guard)

    return Both(follow(title, CloseCodeMiddleware=wrap, guard=guard, **names), bare, guard)


def early_error(name):
    """Return what a handler raises before it accepts, by the path's name."""
    match name:
        case "busy":
            return TryAgainLater(cause="db", retry_after=2)
        case "asked":
            return CloseWith(4001, "as asked")
        case "mapped":
            return PermissionError("secret")
        case "unsendable":
            return CloseWith(1006, "lost")
    return ValueError("secret")


def session(scope):
    """Return the session, or something that takes a key where the middleware is not there."""
    return (scope.get("extensions") or {}).get("closecodes") or type("Nobody", (), {})()
