"""Applications as a new user may get them wrong."""

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings


async def wait(websocket):
    await websocket.accept()
    async for _ in websocket.iter_text():
        pass


def app():
    return Starlette(routes=[WebSocketRoute("/", wait)])


misplaced = app()
misplaced.add_middleware(CloseCodeMiddleware, max_sessions=5)

guard = Guard(Settings(max_sessions=1))
forgotten = app()
forgotten.add_middleware(CloseCodeMiddleware)
