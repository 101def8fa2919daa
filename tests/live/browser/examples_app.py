"""A chat that answers each message with its number, full until somebody asks for /admit."""

import json

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route, WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.gates import MaxSessionsPerKey

guard = Guard(
    Settings(max_sessions=0, max_retry_after=1),
    gate=MaxSessionsPerKey(1, key=lambda session: session.scope["path"], when_full="replace_oldest"),
)
heard = []


async def chat(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        heard.append(json.loads(text))
        await websocket.send_json({"id": heard[-1]["id"]})


async def admit(request):
    guard.update(max_sessions=10)
    return JSONResponse(None)


async def state(request):
    return JSONResponse({"heard": heard, "sessions": len(guard.sessions)})


async def page(request):
    return HTMLResponse(
        "<!doctype html><title>A page</title><link rel=icon href='data:,'><script type=module src=/example.js></script>"
    )


app = Starlette(
    routes=[
        WebSocketRoute("/chat", chat),
        Route("/admit", admit),
        Route("/state", state),
        Route("/page", page),
    ]
)
app.add_middleware(CloseCodeMiddleware, guard=guard)
