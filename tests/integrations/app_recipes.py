"""The recipes of README.md, each below a path of its own."""

import re
from pathlib import PurePath

import ariadne
import ariadne.asgi
import blacksheep
import falcon.asgi
import fastapi
import limits
import sanic
import slowapi
import slowapi.util
import strawberry
import strawberry.asgi
from ariadne.asgi.handlers import GraphQLTransportWSHandler
from fastapi_limiter.depends import WebSocketRateLimiter
from pyrate_limiter import Duration, Limiter, Rate

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Settings, TryAgainLater
from asgi_closecodes.logs import configure_logging
from tests.support.servers import ROOT

README = (ROOT / "asgi_closecodes/integrations/README.md").read_text()
ERRORS = {
    "crash": ValueError("secret"),
    "busy": TryAgainLater(cause="db", retry_after=2),
    "asked": CloseWith(4001, "as asked"),
}


def follow(title, **names):
    """Run the recipe of ``title`` with ``names``, and return its application."""
    [code] = re.findall(rf"^### {title}\n.*?^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    for name in (CloseCodeMiddleware, Settings, TryAgainLater):
        names[name.__name__] = name
    exec(compile(code, f"README.md of {title}", "exec"), names)
    return names["app"]


class InFalcon:
    def __init__(self, error):
        self.error = error

    async def on_websocket(self, request, websocket):
        await websocket.accept()
        raise self.error


def in_falcon():
    app = falcon.asgi.App()
    for name, error in ERRORS.items():
        app.add_route(f"/{name}", InFalcon(error))
    app.add_route("/own", InFalcon(falcon.HTTPForbidden()))
    return follow("Falcon", app=app)


def in_blacksheep():
    return follow("BlackSheep", app=blacksheep.Application(), WebSocket=blacksheep.WebSocket)


def in_sanic():
    app = sanic.Sanic("recipes")
    for name, error in ERRORS.items():

        async def handler(request, websocket, error=error):
            raise error

        app.add_websocket_route(handler, f"/{name}", name=name)
    return follow("Sanic", app=app)


@strawberry.type
class Query:
    @strawberry.field
    def number(self) -> int:
        return 7


class InStrawberry(strawberry.asgi.GraphQL):
    async def on_ws_connect(self, context):
        raise ERRORS[context["connection_params"]["how"]]


async def on_connect(websocket, payload):
    raise ERRORS[payload["how"]]


def in_ariadne():
    schema = ariadne.make_executable_schema("type Query { number: Int }")
    return follow(
        "Ariadne",
        schema=schema,
        on_connect=on_connect,
        GraphQL=ariadne.asgi.GraphQL,
        GraphQLTransportWSHandler=GraphQLTransportWSHandler,
    )


def in_fastapi(title, **names):
    return follow(title, app=fastapi.FastAPI(), WebSocket=fastapi.WebSocket, **names)


apps = {
    "falcon": in_falcon(),
    "blacksheep": in_blacksheep(),
    "sanic": in_sanic(),
    "strawberry": follow("GraphQL", app=InStrawberry(strawberry.Schema(Query))),
    "ariadne": in_ariadne(),
    "fastapi_limiter": in_fastapi(
        "fastapi-limiter", WebSocketRateLimiter=WebSocketRateLimiter, Limiter=Limiter, Rate=Rate, Duration=Duration
    ),
    "slowapi": in_fastapi(
        "slowapi", slowapi=slowapi, limits=limits, get_remote_address=slowapi.util.get_remote_address
    ),
}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await apps["sanic"](scope, receive, send)
    _, name, path = PurePath(scope["path"]).parts
    scope = {**scope, "path": f"/{path}", "raw_path": f"/{path}".encode()}
    await apps[name](scope, receive, send)


configure_logging(format="json")
