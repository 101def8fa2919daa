"""Starlette and FastAPI, which need nothing."""

from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, CloseWith, TryAgainLater
from tests.integrations.both import Both, early_error, make_guard, session


async def echo(websocket: WebSocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def early(websocket: WebSocket):
    raise early_error(websocket.path_params["name"])


def raising(error):
    async def endpoint(websocket: WebSocket):
        await websocket.accept()
        raise error

    return endpoint


async def keyed(websocket: WebSocket):
    session(websocket.scope).key = "anna"
    await echo(websocket)


ENDPOINTS = {
    "/echo": echo,
    "/early/{name}": early,
    "/crash/{name}": raising(ValueError("secret")),
    "/busy": raising(TryAgainLater(cause="db", retry_after=2)),
    "/asked": raising(CloseWith(4001, "as asked")),
    "/keyed": keyed,
}


def starlette():
    return Starlette(routes=[WebSocketRoute(path, endpoint) for path, endpoint in ENDPOINTS.items()])


def fastapi():
    app = FastAPI()
    for path, endpoint in ENDPOINTS.items():
        app.websocket(path)(endpoint)
    return app


def make(kind):
    guard, app = make_guard(), kind()
    app.add_middleware(CloseCodeMiddleware, guard=guard)
    return Both(app, kind(), guard)


both, both_fastapi = make(starlette), make(fastapi)
