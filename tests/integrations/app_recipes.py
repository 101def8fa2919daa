"""The recipes of README.md, each below a path of its own."""

import contextlib
from pathlib import PurePath

import ariadne
import ariadne.asgi
import blacksheep
import falcon.asgi
import fastapi
import limits
import mcp.server
import sanic
import slowapi
import slowapi.util
import strawberry
import strawberry.asgi
from ariadne.asgi.handlers import GraphQLTransportWSHandler
from fastapi_limiter.depends import WebSocketRateLimiter
from fastapi_websocket_pubsub import PubSubEndpoint
from fastapi_websocket_pubsub.rpc_event_methods import RpcEventServerMethods
from fastapi_websocket_rpc import RpcMethodsBase, WebsocketRPCEndpoint
from mcp.server.websocket import websocket_server
from pydantic import ValidationError
from pyrate_limiter import Duration, Limiter, Rate

from asgi_closecodes import CloseWith, TryAgainLater
from asgi_closecodes.logs import configure_logging
from tests.integrations.recipes import follow

ERRORS = {
    "crash": ValueError("secret"),
    "busy": TryAgainLater(cause="db", retry_after=2),
    "asked": CloseWith(4001, "as asked"),
}


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


class Methods:
    async def echo(self, text: str = "x"):
        return text

    async def crash(self):
        raise ERRORS["crash"]

    async def busy(self):
        raise ERRORS["busy"]

    async def asked(self):
        raise ERRORS["asked"]


class RpcMethods(Methods, RpcMethodsBase):
    pass


class PubSubMethods(Methods, RpcEventServerMethods):
    pass


def in_rpc(endpoint, methods):
    return in_fastapi(
        "fastapi_websocket_rpc", ValidationError=ValidationError, WebsocketRPCEndpoint=endpoint, methods=methods
    )


@contextlib.asynccontextmanager
async def raising(error):
    if error is not None:
        raise error
    yield


def in_mcp(error=None):
    server = mcp.server.Server("recipes", lifespan=lambda server: raising(error))

    @server.call_tool(validate_input=False)
    async def crash(name, arguments):
        raise ERRORS["crash"]

    return in_fastapi("MCP", server=server, websocket_server=websocket_server)


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
    "mcp": in_mcp(),
    **{f"mcp_{how}": in_mcp(error) for how, error in ERRORS.items()},
    "rpc": in_rpc(WebsocketRPCEndpoint, RpcMethods()),
    "pubsub": in_rpc(PubSubEndpoint, PubSubMethods),
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
    return None


configure_logging(format="json")
