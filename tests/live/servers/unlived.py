"""Applications whose middleware no lifespan reaches: on routes and in Channels' router. Each has a guard of its own."""

from channels.routing import ProtocolTypeRouter
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware

from .apps import bare
from .frameworks import echo

routes = Starlette(
    routes=[WebSocketRoute(f"/{name}", echo, middleware=[Middleware(CloseCodeMiddleware)]) for name in ("one", "two")]
)
channels = ProtocolTypeRouter({"websocket": CloseCodeMiddleware(bare)})
