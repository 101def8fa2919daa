"""What the processes of the tests serve: an echo behind one cluster limit, from the environment."""

import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard
from asgi_closecodes.logs import configure_logging

configure_logging("json")
guard = Guard()


async def echo(websocket):
    await websocket.accept()
    await websocket.send_text(str(os.getpid()))
    while True:
        await websocket.send_text(await websocket.receive_text())


async def state(_request):
    return JSONResponse({"pid": os.getpid(), **guard.snapshot()})


app = Starlette(
    routes=[WebSocketRoute("/", echo), Route("/state", state)], middleware=[Middleware(CloseCodeMiddleware, guard)]
)
