"""Handlers that end while their peers do not read or answer, behind guards that a path chooses; and the bare ones."""

import math
import os

import anyio
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, TryAgainLater
from asgi_closecodes.logs import configure_logging
from asgi_closecodes.session import protocol

configure_logging(format="json")
protocol.CLOSE_TIMEOUT_S = float(os.environ.get("CLOSE_TIMEOUT", "10"))

MEGABYTE = "x" * 1_000_000
FAREWELL = 30_000_000
"""Bytes, more than sockets hold."""
FLOOD = 0.3
"""Seconds in which a peer that does not read stops its handler."""


async def flood(send, seconds=math.inf):
    with anyio.move_on_after(seconds):
        for _ in range(20):  # more than sockets hold; daphne takes it all at once
            await send({"type": "websocket.send", "text": MEGABYTE})
            await anyio.sleep(0)


async def stay(receive, send):
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def flood_and_stay(receive, send):
    await flood(send)
    await anyio.sleep_forever()


async def returns(receive, send):
    pass


async def flood_and_return(receive, send):
    await flood(send, FLOOD)


async def long_farewell(receive, send):
    await send({"type": "websocket.send", "bytes": bytes(FAREWELL)})
    await send({"type": "websocket.close", "code": 4000})


async def close(receive, send):
    await send({"type": "websocket.close", "code": 4000})


async def flood_and_close(receive, send):
    await flood(send, FLOOD)
    await close(receive, send)


async def crash(receive, send):
    raise ValueError("as asked")


async def flood_and_crash(receive, send):
    await flood(send, FLOOD)
    await crash(receive, send)


async def be_cancelled(receive, send):
    await anyio.sleep_forever()


HANDLERS = {
    handler.__name__.replace("_", "-"): handler
    for handler in (
        stay,
        flood_and_stay,
        returns,
        long_farewell,
        flood_and_return,
        close,
        flood_and_close,
        crash,
        flood_and_crash,
        be_cancelled,
    )
}


async def handle(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await HANDLERS[scope["path"].rpartition("/")[2]](receive, send)


GUARDS = {
    "any": Guard(Settings(shed_grace=1)),
    "full": Guard(Settings(max_sessions=0, reject_with="close")),
    "few": Guard(Settings(max_sessions_per_client=3, when_client_full="replace_oldest", shed_grace=1)),
    "brief": Guard(Settings(shed_grace=0.1, abandon_after=0.5)),
    "below": Guard(),
}
MIDDLEWARE = {name: CloseCodeMiddleware(handle, guard) for name, guard in GUARDS.items()}
# Both wrap what the session sends with.
MIDDLEWARE["below"] = SessionMiddleware(Starlette(routes=[Mount("/below", MIDDLEWARE["below"])]), "a secret")


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        guard = scope["path"].split("/")[1]
        impatience = 0.3 if scope["path"].endswith("/be-cancelled") else math.inf
        with anyio.move_on_after(impatience):
            await MIDDLEWARE[guard](scope, receive, send)
    elif scope["type"] == "http":
        request = Request(scope)
        guard = GUARDS.get(scope["path"].removeprefix("/"))
        if "shed" in request.query_params:
            for one in list(guard.sessions)[: int(request.query_params["shed"])]:
                one.schedule_close(TryAgainLater(cause="test", retry_after=2))
        if "drain" in request.query_params:
            await guard.drain(0)
            guard.draining = False
        await JSONResponse({name: guard.snapshot() for name, guard in GUARDS.items()})(scope, receive, send)
    else:
        await bare(scope, receive, send)


async def bare(scope, receive, send):
    if scope["type"] == "websocket":
        await handle(scope, receive, send)
    elif scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await JSONResponse({})(scope, receive, send)
