"""Quart."""

from quart import Blueprint, Quart, abort, websocket

from asgi_closecodes import CloseWith, TryAgainLater
from tests.integrations.both import early_error, session, with_recipe


def make():
    app = Quart(__name__)

    @app.websocket("/echo")
    async def echo():
        while True:
            await websocket.send(await websocket.receive())

    @app.websocket("/early/<name>")
    async def early(name):
        raise early_error(name)

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

    @app.websocket("/refused")
    async def refused():
        abort(401)

    @app.websocket("/handled")
    async def handled():
        await websocket.accept()
        raise LookupError

    @app.errorhandler(LookupError)
    async def on_lookup(error):
        await websocket.close(4004, "of the application")

    below = Blueprint("below", __name__, url_prefix="/of")

    @below.websocket("/crash/<int:number>")
    async def crash_below(number):
        await crash(number)

    app.register_blueprint(below)
    return app


both = with_recipe("Quart", bare=make(), app=make())

bare_debug, app_debug = make(), make()
bare_debug.debug = app_debug.debug = True
both_debug = with_recipe("Quart", bare=bare_debug, app=app_debug)
