"""A server for clients that reconnect. `/seen` has what their connections were."""

import time
from collections import defaultdict
from importlib.resources import files

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from asgi_closecodes import CloseCodeMiddleware, Settings

attempts = defaultdict(list)
"""Times of the handshakes by path, in monotonic seconds."""
left = defaultdict(list)
"""The codes with which clients closed."""


async def close(websocket):
    """Accept, then close; a path of several codes has one for each attempt, the last for all that follow.

    The query may ask for a number of ``messages`` before that, for some ``seconds``, and for a ``reason``.
    """
    *earlier, last = websocket.path_params["codes"].split(",")
    number = len(attempts[websocket.url.path]) - 1
    await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
    for _ in range(int(websocket.query_params.get("messages", 0))):
        await websocket.send_text("hello")
    await anyio.sleep(float(websocket.query_params.get("seconds", 0)))
    code = earlier[number] if number < len(earlier) else last
    await websocket.close(int(code), websocket.query_params.get("reason", ""))


async def protect(websocket):
    """Do as :func:`close` for a client with the token ``new``. Close with 3000 for others, or refuse with ``status``.

    The token is in the header ``authorization``, in the query or a subprotocol.
    """
    subprotocols = websocket.scope["subprotocols"]
    if "new" in {websocket.headers.get("authorization"), websocket.query_params.get("token"), *subprotocols}:
        await close(websocket)
    elif status := websocket.query_params.get("status"):
        await websocket.send_denial_response(Response(status_code=int(status)))
    else:
        await websocket.accept(subprotocol=next(iter(subprotocols), None))
        await websocket.close(3000, "unauthorized")


async def refuse(websocket):
    headers = {name: value for name, value in websocket.query_params.items() if name == "retry-after"}
    await websocket.send_denial_response(Response(status_code=websocket.path_params["status"], headers=headers))


async def echo(websocket):
    subprotocols = websocket.scope["subprotocols"]
    await websocket.accept(subprotocol=subprotocols[-1] if subprotocols else None)
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"])
            await websocket.send({**message, "type": "websocket.send"})
    except WebSocketDisconnect as end:
        left[websocket.url.path].append(end.code)


async def seen(request):
    return JSONResponse({"attempts": attempts, "left": left})


async def page(request):
    policy = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data:"
    html = "<!doctype html><title>A page</title><link rel=icon href='data:,'>"
    return HTMLResponse(html, headers={"content-security-policy": policy})


def script(request):
    return FileResponse(files("asgi_closecodes.client") / "reconnecting-websocket.js")


routes = Starlette(
    routes=[
        WebSocketRoute("/close/{key}/{codes}", close),
        WebSocketRoute("/protect/{key}/{codes}", protect),
        WebSocketRoute("/refuse/{key}/{status:int}", refuse),
        WebSocketRoute("/echo/{key}", echo),
        WebSocketRoute("/full", echo, middleware=[Middleware(CloseCodeMiddleware, settings=Settings(max_sessions=0))]),
        Route("/seen", seen),
        Route("/page", page),
        Route("/static/reconnecting-websocket.js", script),
    ]
)


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        attempts[scope["path"]].append(time.monotonic())
    await routes(scope, receive, send)
