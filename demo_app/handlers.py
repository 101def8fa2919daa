"""Handlers: one for each end of a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.websockets import WebSocket

from asgi_closecodes import CloseWith, TryAgainLater


async def echo(websocket: WebSocket) -> None:
    """Echo until the peer leaves; the disconnect may escape and is not an error."""
    await websocket.accept(subprotocol=_subprotocol(websocket))
    while True:
        await websocket.send_text(await websocket.receive_text())


async def crash_before_accept(_websocket: WebSocket) -> None:
    """Fail before the handshake is answered."""
    raise LookupError("a bug before accept; this text stays on the server")


async def crash_after_accept(websocket: WebSocket) -> None:
    """Fail in an open session."""
    await websocket.accept(subprotocol=_subprotocol(websocket))
    raise LookupError("a bug after accept; this text stays on the server")


async def crash_on_message(websocket: WebSocket) -> None:
    """Fail on the first message that is 0 or not a number."""
    await websocket.accept(subprotocol=_subprotocol(websocket))
    while True:
        await websocket.send_text(f"1 / {(number := await websocket.receive_text())} = {1 / float(number)}")


async def close_on_purpose(websocket: WebSocket) -> None:
    """Close with an application code."""
    await websocket.accept(subprotocol=_subprotocol(websocket))
    raise CloseWith(4003, "closed on purpose")


async def try_again_later(websocket: WebSocket) -> None:
    """Refuse because the database is exhausted."""
    await websocket.accept(subprotocol=_subprotocol(websocket))
    raise TryAgainLater("the database is busy", cause="database", retry_after=5)


async def return_early(websocket: WebSocket) -> None:
    """Return without a close."""
    await websocket.accept(subprotocol=_subprotocol(websocket))


async def close_badly(websocket: WebSocket) -> None:
    """Close with a code that must not be sent, and too long a reason."""
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
