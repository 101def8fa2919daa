"""python-socketio: the paths of the others are events here."""

import socketio

from asgi_closecodes import CloseWith, TryAgainLater
from asgi_closecodes.integrations.socketio import current_session
from tests.integrations.both import early_error, with_recipe
from tests.integrations.recipes import follow


def register(sio):
    @sio.event
    async def connect(sid, environ, auth=None):
        match auth:
            case {"early": name}:
                raise early_error(name)
            case {"refuse": True}:
                raise socketio.exceptions.ConnectionRefusedError("no")
            case {"key": key} if (session := current_session()) is not None:
                session.key = key

    @sio.event
    async def echo(sid, data):
        await sio.emit("echo", data, to=sid)
        return data

    @sio.event
    def crash(sid, data=None):
        raise ValueError("secret")

    @sio.on("busy")
    async def busy(sid, data=None):
        raise TryAgainLater(cause="db", retry_after=2)

    async def asked(sid, data=None):
        raise CloseWith(4001, "as asked")

    sio.on("asked", asked)
    sio.on("connect", lambda sid, environ: None, namespace="/legacy")

    class Below(socketio.AsyncNamespace):
        def on_connect(self, sid, environ, auth=None):
            if "early" in (auth or {}):
                raise early_error(auth["early"])

        async def on_crash(self, sid, data=None):
            raise ValueError("secret")

        async def on_echo(self, sid, data):
            return data

    sio.register_namespace(Below("/below"))


def make(**options):
    # Engine.IO has a task for each session, which outlives it by one such interval.
    return socketio.AsyncServer(async_mode="asgi", cors_allowed_origins=[], ping_interval=1, **options)


def server():
    """Return a server that has its handlers."""
    sio = make()
    register(sio)
    return sio


both = with_recipe("python-socketio", bare=socketio.ASGIApp(server()), sio=server(), socketio=socketio)
sio_first = make()
both_first = with_recipe("python-socketio", bare=socketio.ASGIApp(server()), sio=sio_first, socketio=socketio)
register(sio_first)

sio_always = make(always_connect=True)
always = with_recipe("python-socketio", bare=socketio.ASGIApp(server()), sio=sio_always, socketio=socketio)
register(sio_always)

login = follow("A login with python-socketio", user_of={"a token": "anna"}.get)
