"""Litestar."""

from litestar import Litestar, Router, WebSocket, asgi, websocket
from litestar.exceptions import InternalServerException, NotAuthorizedException, WebSocketException
from litestar.types import Receive, Scope, Send

from asgi_closecodes import CloseWith, TryAgainLater
from tests.integrations.both import early_error, session, with_recipe


@websocket("/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        await socket.send_text(await socket.receive_text())


@websocket("/early/{name:str}")
async def early(socket: WebSocket, name: str) -> None:
    raise early_error(name)


@websocket("/crash/{name:str}")
async def crash(socket: WebSocket, name: str) -> None:
    await socket.accept()
    raise ValueError("secret")


@websocket("/busy")
async def busy(socket: WebSocket) -> None:
    await socket.accept()
    raise TryAgainLater(cause="db", retry_after=2)


@websocket("/asked")
async def asked(socket: WebSocket) -> None:
    await socket.accept()
    raise CloseWith(4001, "as asked")


@websocket("/keyed")
async def keyed(socket: WebSocket) -> None:
    session(socket.scope).key = "anna"
    await socket.accept()
    while True:
        await socket.send_text(await socket.receive_text())


@websocket("/forbidden")
async def forbidden(socket: WebSocket) -> None:
    await socket.accept()
    raise NotAuthorizedException("log in")


@websocket("/violated")
async def violated(socket: WebSocket) -> None:
    await socket.accept()
    raise WebSocketException(code=4002, detail="its own")


@websocket("/own")
async def own(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close(4500, "of the handler")


@websocket("/internal")
async def internal(socket: WebSocket) -> None:
    await socket.accept()
    raise InternalServerException("secret")


@asgi("/below", is_mount=True)
async def below(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("secret")


def make():
    handlers = [echo, early, crash, busy, asked, keyed, forbidden, violated, internal, own]
    return Litestar([*handlers, Router("/of", route_handlers=[crash]), below], logging_config=None)


both = with_recipe("Litestar", bare=make(), app=make())
