"""A FastAPI application with the one line, and no configuration of logging."""

from fastapi import FastAPI, WebSocket

from asgi_closecodes import CloseCodeMiddleware

app = FastAPI()
app.add_middleware(CloseCodeMiddleware)


@app.websocket("/crash/{name}")
async def crash(websocket: WebSocket, name: str):
    await websocket.accept(websocket.scope["subprotocols"][0] if websocket.scope["subprotocols"] else None)
    kept = await websocket.receive_text()
    local = f"local of {kept}"
    raise ValueError(f"{len(local)} characters")


@app.websocket("/echo/{name}")
async def echo(websocket: WebSocket, name: str):
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
