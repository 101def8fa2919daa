"""Applications that report to Sentry, whose transport writes to stdout instead."""

import json
import os

import sentry_sdk
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard
from asgi_closecodes.telemetry.sentry import before_send


class ToStdout(sentry_sdk.transport.Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            print(json.dumps({"sentry": item.type, "payload": item.payload.json}), flush=True)


PRIVATE = {"include_local_variables": False, "before_send": before_send, "before_send_transaction": before_send}

# As generous with data as it can be otherwise.
sentry_sdk.init(
    "http://key@127.0.0.1:9/1",
    transport=ToStdout,
    traces_sample_rate=1.0,
    send_default_pii=True,
    max_request_body_size="always",
    attach_stacktrace=True,
    **({} if "NAIVE" in os.environ else PRIVATE),
)

guard = Guard()


async def room(websocket: WebSocket):
    await websocket.accept(subprotocol="chat")
    payload = await websocket.receive_text()
    found = [payload, dict(websocket.headers), websocket.cookies, str(websocket.query_params)]
    raise ZeroDivisionError(f"{len(found)} things")


starlette = Starlette(
    routes=[WebSocketRoute("/rooms/{token}", room)], middleware=[Middleware(CloseCodeMiddleware, guard=guard)]
)
fastapi = FastAPI(middleware=[Middleware(CloseCodeMiddleware, guard=guard)])
fastapi.websocket("/rooms/{token}")(room)


async def app(scope, receive, send):
    """Serve both, below their names."""
    _, name, *rest = scope.get("path", "/starlette").split("/")
    path = "/" + "/".join(rest)
    await {"starlette": starlette, "fastapi": fastapi}[name](
        {**scope, "path": path, "raw_path": path.encode()} if rest else scope, receive, send
    )
