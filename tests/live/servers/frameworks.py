"""A Starlette application that adds the middleware as its documentation says."""

import time

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from asgi_closecodes import CloseCodeMiddleware
from asgi_closecodes.logs import configure_logging

configure_logging(format="json")


async def echo(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def go_on(websocket):
    """Wait for ever after the client has left."""
    await websocket.accept()
    async for _ in websocket.iter_text():
        pass
    print("alone", flush=True)
    await anyio.sleep_forever()


async def crash(websocket):
    await websocket.accept()
    raise ValueError("secret")


async def refuse(websocket):
    raise HTTPException(404)


async def forbid_late(websocket):
    await websocket.accept()
    raise HTTPException(403)


async def violate(websocket):
    await websocket.accept()
    raise WebSocketException(1008, "policy")


async def leave(websocket):
    await websocket.accept()
    try:
        await websocket.receive_text()
    except WebSocketDisconnect:  # noqa: TRY203 - as people write it
        raise


routes = [
    WebSocketRoute(f"/{endpoint.__name__}/{{name}}", endpoint)
    for endpoint in (echo, go_on, crash, refuse, forbid_late, violate, leave)
]


async def stall(request):
    time.sleep(float(request.query_params["seconds"]))
    return PlainTextResponse("awake again")


starlette = Starlette(routes=[*routes, Mount("/below", routes=routes), Route("/stall", stall)])
starlette.add_middleware(CloseCodeMiddleware)
