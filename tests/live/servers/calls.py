"""Calls that are busy until their peer says something, and the endpoint of the README that drains before a stop."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.logs import configure_logging

configure_logging(format="json")
guard = Guard(Settings(drain_window=1, drain_patience=60))


async def call(websocket):
    await websocket.accept()
    with websocket.scope["extensions"]["closecodes"].busy():
        await websocket.send_text("ringing")
        await websocket.send_text(await websocket.receive_text())
    await websocket.receive_text()


async def idle(websocket):
    await websocket.accept()
    await websocket.receive_text()


async def drain(_request):
    await guard.drain()
    return Response()


async def ready(_request):
    return Response(status_code=503 if guard.draining else 200)


app = Starlette(
    routes=[
        WebSocketRoute("/call", call),
        WebSocketRoute("/idle", idle),
        Route("/drain", drain, methods=["POST"]),
        Route("/ready", ready),
    ],
    middleware=[Middleware(CloseCodeMiddleware, guard=guard)],
)
