"""Echoes of sessions that hold 128 KiB each, and a guard whose limit of memory is set from outside.

The garbage collector is off: what comes back comes back without it.
"""

import asyncio
import gc
import time

import psutil
from starlette.requests import Request
from starlette.responses import JSONResponse

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.logs import configure_logging

gc.disable()
configure_logging(format="json")
guard = Guard(Settings(shed_rate=1000, log_burst=None))
kept = []
"""What is leaked."""


def in_pieces(size):
    """Return memory as an application has it: in pieces that malloc takes from its heap."""
    return [bytes(1000) for _ in range(size // 1000)]


async def echo(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    held = in_pieces(1 << 17)
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
    await asyncio.sleep(float(scope["path"].removeprefix("/")))  # cleans up
    del held


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await echo(scope, receive, send)
    elif scope["type"] == "http":
        asked = Request(scope).query_params
        kept.extend(in_pieces(int(asked.get("leak", 0)) << 20))
        resident = psutil.Process().memory_info().rss
        if "share" in asked:
            guard.update(max_memory=int(resident * float(asked["share"])))
        protocols = sum(type(one).__name__ == "ServerProtocol" for one in gc.get_objects())
        state = {
            "at": time.monotonic(),
            "resident": resident,
            "protocols": protocols,
            "limit": guard.settings.max_memory,
        }
        await JSONResponse({**state, **guard.snapshot()})(scope, receive, send)


app = CloseCodeMiddleware(app, guard)
