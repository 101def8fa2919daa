"""Three applications in one process: that of Starlette, below /fastapi that of FastAPI, and the one with mounts."""

from fastapi import FastAPI, WebSocket

from asgi_closecodes import CloseCodeMiddleware

from . import mounted
from .frameworks import crash, starlette

fastapi = FastAPI()
fastapi.add_middleware(CloseCodeMiddleware)


@fastapi.websocket("/number/{name}")
async def number(websocket: WebSocket, n: int):
    await websocket.accept()
    await websocket.send_text(str(n))


@fastapi.websocket("/crash/{name}")
async def crash_in_fastapi(websocket: WebSocket):
    await crash(websocket)


BELOW = {"fastapi": fastapi, "mounted": mounted.app}


async def app(scope, receive, send):
    _, top, *rest = scope.get("path", "/").split("/")
    if top in BELOW:
        path = "/" + "/".join(rest)
        await BELOW[top]({**scope, "path": path, "raw_path": path.encode()}, receive, send)
    else:
        await starlette(scope, receive, send)
