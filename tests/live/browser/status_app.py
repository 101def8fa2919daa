"""A few sessions, and what an operator may see of them."""

from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, StatusApp

Hostile = type("<img src=x onerror=alert(1)>", (Exception,), {})
guard = Guard(Settings(max_sessions=3))


async def stay(websocket):
    await websocket.accept()
    async for _ in websocket.iter_text():
        pass


async def crash(websocket):
    await websocket.accept()
    raise Hostile


async def close(websocket):
    await websocket.accept()
    await websocket.close(websocket.path_params["code"])


def is_operator(request):
    return request.headers.get("authorization") == "Bearer secret"


app = Starlette(
    routes=[
        WebSocketRoute("/stay", stay),
        WebSocketRoute("/crash/{b}", crash),
        WebSocketRoute("/close/{code:int}", close),
        Mount("/status", StatusApp(guard, authorize=is_operator)),
    ]
)
app.add_middleware(CloseCodeMiddleware, guard=guard)
