"""The middleware on one mount only, where no lifespan reaches it."""

from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware

from .frameworks import crash, routes

app = Starlette(
    routes=[Mount("/guarded", CloseCodeMiddleware(Starlette(routes=routes))), WebSocketRoute("/{name}", crash)]
)
