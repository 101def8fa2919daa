"""Applications that real front ends connect to: those with pages as asgi_closecodes/integrations/README.md has them.

Each has paths for its test: ``/-/handshakes`` says when which came and how they were answered; ``/-/1013`` and the
others of ``WAYS`` end all sessions and refuse new ones in that way, until ``/-/admit``.
"""

import asyncio
import json
import os
import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Guard, Settings
from asgi_closecodes.events import SessionAdmitted, SessionOpened, SessionRefused
from asgi_closecodes.exceptions import TryAgainLater
from tests.integrations.recipes import follow
from tests.live.front_ends.libraries import LIBRARIES, path_of

HERE = Path(__file__).parent
WAYS = {"1011 once": None, "1011": "close", "1012": "close", "1013": "close", "503": "http", "default": "auto"}
"""How sessions end, and in which mode new ones are rejected from then on."""
ERRORS = {"1011": ValueError("measured"), "1011 once": ValueError("measured"), "4001": CloseWith(4001, "sign in")}
"""Ways in which each new session ends by an error of its handler."""


class Controlled:
    """An application that is full or fails as it is asked to, and knows its handshakes."""

    def __init__(self, gate=None):
        self.guard = Guard(Settings(), gate=gate, observers=[self.observe])
        self.app = None
        self.handshakes = []
        self.is_failing = False
        self.error = ERRORS["1011"]
        self.tasks = set()

    def observe(self, event):
        match event:
            case SessionAdmitted() if not self.is_failing:
                self.note("in")
            case SessionRefused():
                self.note(event.mode)
            case SessionOpened() if self.is_failing:
                self.note("close")
                self.tasks.add(asyncio.ensure_future(self.fail(event.session.id)))

    def note(self, answer):
        self.handshakes.append((time.time(), answer))

    async def fail(self, session_id=None):
        for session in [*self.guard.sessions]:
            if session_id in (None, session.id):
                await session.fail(self.error)

    async def refuse(self, way):
        if (mode := WAYS.get(way, "close")) is not None:
            self.guard.update(reject_with=mode)
        if way in ERRORS:
            self.is_failing, self.error = mode is not None, ERRORS[way]
            await self.fail()
        elif way == "1012":
            await self.guard.drain(0)
        else:
            self.guard.update(max_sessions=0)
            for session in [*self.guard.sessions]:
                await session.shed("full")

    def admit(self):
        self.is_failing = self.guard.draining = False
        self.guard.update(max_sessions=None)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"].startswith("/-/"):
            what = scope["path"].removeprefix("/-/").replace("-", " ")
            if what in {*WAYS, *ERRORS}:
                await self.refuse(what)
            elif what == "admit":
                self.admit()
            await JSONResponse(self.handshakes)(scope, receive, send)
        elif scope["type"] == "http" and b"EIO=" in scope["query_string"] and b"sid=" not in scope["query_string"]:
            await self.app(scope, receive, self.noting(send))
        else:
            await self.app(scope, receive, send)

    def noting(self, send):
        """Note how a new session of Engine.IO is answered, which no event tells of."""

        async def note(message):
            if message["type"] == "http.response.start":
                self.note("in" if message["status"] < 400 else "http")
            await send(message)

        return note

    def of(self, title, **names):
        """Have the application of a recipe."""
        os.chdir(HERE)
        self.app = follow(title, guard=self.guard, **names)
        return self


def nicegui():
    from fastapi import FastAPI
    from nicegui import ui

    app = FastAPI()

    @ui.page("/")
    def index():
        ui.label("hello")

    ui.run_with(app)
    return Controlled().of("NiceGUI", app=app)


def streamlit():
    return Controlled().of("Streamlit")


def marimo():
    return Controlled().of("marimo")


def chainlit():
    from chainlit.utils import mount_chainlit
    from fastapi import FastAPI

    app = FastAPI()
    mount_chainlit(app, target=str(HERE / "chat.py"), path="/chat")
    return Controlled().of("Chainlit", app=app)


def shiny():
    from shiny import ui

    return Controlled().of("Shiny", app_ui=ui.page_fluid("hello"), server=None)


def bare(app, gate=None):
    one = Controlled(gate)
    one.app = CloseCodeMiddleware(app, one.guard)
    return one


def socket_io():
    from socketio import ASGIApp, AsyncServer

    return bare(ASGIApp(AsyncServer(async_mode="asgi", cors_allowed_origins="*")))


def graphql():
    return bare(_graphql)


def crowd():
    """Refuse everybody with a hint of four seconds."""

    class Refusing:
        def admit(self, session):
            raise TryAgainLater(cause="full", retry_after=4.0)

    return bare(_graphql, Refusing())


def of_npm():
    """Libraries of npm, a page for them, and for each an application below its name."""
    below = {path_of(name): bare(_welcome) for name in LIBRARIES}
    files = StaticFiles(directory=os.environ["NODE_PATH"])
    routes = [Route("/page", lambda _: HTMLResponse("<body></body>")), Mount("/modules", files)]
    rest = Starlette(routes=routes)

    async def app(scope, receive, send):
        _, *names = scope.get("path", "").split("/")
        if names and (one := below.get(f"/{names[0]}")) is not None:
            await one({**scope, "path": "/" + "/".join(names[1:])}, receive, send)
        else:
            await rest(scope, receive, send)

    return app


async def _welcome(scope, receive, send):
    """Accept with the first subprotocol, and listen."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
        while (await receive())["type"] != "websocket.disconnect":
            pass


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
