"""An application that shows its metrics, of one process or of several."""

import os

from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard
from asgi_closecodes.telemetry.prometheus import PrometheusObserver


async def room(websocket):
    await websocket.accept()
    await websocket.send_text(str(os.getpid()))
    async for text in websocket.iter_text():
        if text == "crash":
            raise ZeroDivisionError


registry = REGISTRY
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    MultiProcessCollector(registry := CollectorRegistry())

guard = Guard(observers=[PrometheusObserver()])
app = Starlette(
    routes=[WebSocketRoute("/rooms/{room}", room), Mount("/metrics", make_asgi_app(registry))],
    middleware=[Middleware(CloseCodeMiddleware, guard)],
)
