"""The application: one WebSocket route for each way in which a session may end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Guard, Settings, TryAgainLater
from asgi_closecodes.logs import configure_logging
from asgi_closecodes.settings import Sessions

PAGE = Path(__file__).with_name("page.html")


class DemoSettings(Settings):
    """The settings of the library, with a limit that two hands can reach."""

    max_sessions: Sessions = 3


async def echo(websocket: WebSocket) -> None:
    """Say everything back until the peer leaves; that its disconnect escapes is no error."""
    await websocket.accept(subprotocol=_subprotocol(websocket))
    while True:
        await websocket.send_text(await websocket.receive_text())


async def crash_before_accept(_websocket: WebSocket) -> None:
    """Fail while the handshake waits for its answer."""
    raise LookupError("a bug before accept; this text stays on the server")


async def crash_after_accept(websocket: WebSocket) -> None:
    """Fail in an open session."""
    await websocket.accept(subprotocol=_subprotocol(websocket))
    raise LookupError("a bug after accept; this text stays on the server")


async def crash_on_message(websocket: WebSocket) -> None:
    """Fail on the first message that is no number."""
    await websocket.accept(subprotocol=_subprotocol(websocket))
    while True:
        await websocket.send_text(f"1 / {(number := await websocket.receive_text())} = {1 / float(number)}")


async def close_on_purpose(websocket: WebSocket) -> None:
    """Close with a code of the application's own."""
    await websocket.accept(subprotocol=_subprotocol(websocket))
    raise CloseWith(4003, "closed on purpose")


async def try_again_later(websocket: WebSocket) -> None:
    """Say that something else than the number of sessions is exhausted."""
    await websocket.accept(subprotocol=_subprotocol(websocket))
    raise TryAgainLater("the database is busy", cause="database", retry_after=5)


async def return_early(websocket: WebSocket) -> None:
    """Forget to close."""
    await websocket.accept(subprotocol=_subprotocol(websocket))


async def close_badly(websocket: WebSocket) -> None:
    """Close with a code that may not be sent, and a reason that is too long for a close frame."""
    await websocket.accept(subprotocol=_subprotocol(websocket))
    await websocket.close(1006, "a reason of more than 123 bytes " * 6)


ENDINGS: tuple[Callable[[WebSocket], Awaitable[None]], ...] = (
    echo,
    crash_before_accept,
    crash_after_accept,
    crash_on_message,
    close_on_purpose,
    try_again_later,
    return_early,
    close_badly,
)


def _subprotocol(websocket: WebSocket) -> str | None:
    return next(iter(websocket.scope["subprotocols"]), None)


def create_app() -> Starlette:
    """Return the application, and log JSON lines to stderr from now on.

    :raises SettingsError: if the environment holds settings that cannot be used.
    """
    configure_logging(format="json", logger="")
    guard = Guard(DemoSettings())

    async def page(_request: Request) -> Response:
        return FileResponse(PAGE)

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def state(_request: Request) -> Response:
        return JSONResponse(guard.snapshot())

    return Starlette(
        routes=[
            Route("/", page),
            Route("/healthz", healthz),
            Route("/state", state),
            *(WebSocketRoute(f"/{ending.__name__.replace('_', '-')}", ending) for ending in ENDINGS),
        ],
        middleware=[Middleware(CloseCodeMiddleware, guard)],
    )
