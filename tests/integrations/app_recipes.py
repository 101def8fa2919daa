"""The recipes of README.md, each below a path of its own."""

import re
from pathlib import PurePath

import ariadne
import falcon
import strawberry
import strawberry.asgi

from asgi_closecodes import CloseWith, TryAgainLater
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
    exec(compile(code, f"README.md of {title}", "exec"), names)
    return names["app"]


class InFalcon:
    def __init__(self, error):
        self.error = error

    async def on_websocket(self, request, websocket):
        await websocket.accept()
        raise self.error


def in_falcon():
    app = follow("Falcon")
    for name, error in ERRORS.items():
        app.app.add_route(f"/{name}", InFalcon(error))
    app.app.add_route("/own", InFalcon(falcon.HTTPForbidden()))
    return app


def in_sanic():
    app = follow("Sanic")
    for name, error in ERRORS.items():

        async def handler(request, websocket, error=error):
            raise error

        app.app.add_websocket_route(handler, f"/{name}", name=name)
    return app


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
    return follow("Ariadne", schema=schema, on_connect=on_connect)


apps = {
    "falcon": in_falcon(),
    "blacksheep": follow("BlackSheep"),
    "sanic": in_sanic(),
    "strawberry": follow("GraphQL", app=InStrawberry(strawberry.Schema(Query))),
    "ariadne": in_ariadne(),
    "fastapi_limiter": follow("fastapi-limiter"),
    "slowapi": follow("slowapi"),
}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await apps["sanic"](scope, receive, send)
    _, name, path = PurePath(scope["path"]).parts
    scope = {**scope, "path": f"/{path}", "raw_path": f"/{path}".encode()}
    await apps[name](scope, receive, send)
    return None


configure_logging(format="json")
