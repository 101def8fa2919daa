"""Applications that real front ends connect to, behind the middleware with default settings.

Each has two paths more: ``/-/rejections`` says when handshakes were rejected, and how; ``/-/admit`` ends the refusal.
"""

import json
import time
from pathlib import Path

from starlette.responses import JSONResponse

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.events import SessionRefused
from asgi_closecodes.exceptions import TryAgainLater

HERE = Path(__file__).parent


class Full:
    """An application whose server is full until somebody asks it to admit."""

    def __init__(self, app, gate=None):
        self.rejections = []
        self.guard = Guard(Settings(max_sessions=None if gate else 0), gate=gate, observers=[self.observe])
        self.app = CloseCodeMiddleware(app, self.guard)

    def observe(self, event):
        if isinstance(event, SessionRefused):
            self.rejections.append((time.time(), event.mode))

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"].startswith("/-/"):
            if scope["path"] == "/-/admit":
                self.guard.update(max_sessions=None)
            await JSONResponse(self.rejections)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def marimo():
    from marimo import create_asgi_app

    return Full(create_asgi_app().with_app(path="", root=str(HERE / "notebook.py")).build())


def streamlit():
    from streamlit.starlette import App

    return Full(App(HERE / "script.py"))


def nicegui():
    from fastapi import FastAPI
    from nicegui import ui

    app = FastAPI()

    @ui.page("/")
    def index():
        ui.label("hello")

    ui.run_with(app)
    return Full(app)


def socket_io():
    from socketio import ASGIApp, AsyncServer

    return Full(ASGIApp(AsyncServer(async_mode="asgi", cors_allowed_origins="*")))


def graphql():
    return Full(_graphql)


def crowd():
    """Refuse everybody with a hint of four seconds."""

    class Refusing:
        def admit(self, session):
            raise TryAgainLater(cause="full", retry_after=4.0)

    return Full(_graphql, gate=Refusing())


async def _graphql(scope, receive, send):
    """Answer each subscription with one result, by the protocol graphql-transport-ws."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept", "subprotocol": "graphql-transport-ws"})
    while (message := await receive())["type"] == "websocket.receive":
        asked = json.loads(message["text"])
        answers = {
            "connection_init": [{"type": "connection_ack"}],
            "subscribe": [
                {"type": "next", "id": asked.get("id"), "payload": {"data": {"hello": "world"}}},
                {"type": "complete", "id": asked.get("id")},
            ],
        }
        for answer in answers.get(asked["type"], ()):
            await send({"type": "websocket.send", "text": json.dumps(answer)})
