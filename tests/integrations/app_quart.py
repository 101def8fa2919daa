"""Quart."""

from quart import Quart, websocket

from asgi_closecodes import CloseCodeMiddleware, CloseWith, TryAgainLater
from asgi_closecodes.integrations.quart import install
from tests.integrations.both import Both, make_guard, session


def make():
    app = Quart(__name__)

    @app.websocket("/echo")
    async def echo():
        while True:
            await websocket.send(await websocket.receive())

    @app.websocket("/early/<name>")
    async def early(name):
        raise ValueError("secret")

    @app.websocket("/crash/<name>")
    async def crash(name):
        await websocket.accept()
        raise ValueError("secret")

    @app.websocket("/busy")
    async def busy():
        await websocket.accept()
        raise TryAgainLater(cause="db", retry_after=2)

    @app.websocket("/asked")
    async def asked():
        await websocket.accept()
        raise CloseWith(4001, "as asked")

    @app.websocket("/keyed")
    async def keyed():
        session(websocket.scope).key = "anna"
        await echo()

    return app


bare, app, guard = make(), make(), make_guard()
install(app)
install(app)
both = Both(CloseCodeMiddleware(app, guard), bare, guard)
