"""Frameworks that have a way of their own to say that there is no such path."""

import quart
import sanic
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import re_path

from asgi_closecodes import CloseCodeMiddleware, Guard
from asgi_closecodes.logs import configure_logging

BODY = "why " * 25_000
settings.configure()
configure_logging(format="json")


class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data, bytes_data)


class Crash(AsyncWebsocketConsumer):
    async def connect(self):
        raise ValueError("No route found for path 'mine'.")


inner = URLRouter([re_path("^echo$", Echo.as_asgi())])
channels_app = ProtocolTypeRouter(
    {
        "websocket": URLRouter(
            [
                re_path("^channels/echo$", Echo.as_asgi()),
                re_path("^channels/crash$", Crash.as_asgi()),
                re_path("^channels/below/", inner),
            ]
        )
    }
)

sanic_app = sanic.Sanic("routers")


@sanic_app.websocket("/sanic/echo")
async def echo_in_sanic(request, websocket):
    while (message := await websocket.recv()) is not None:
        await websocket.send(message)


quart_app = quart.Quart("routers")


@quart_app.websocket("/quart/echo")
async def echo_in_quart():
    while True:
        await quart.websocket.send(await quart.websocket.receive())


@quart_app.websocket("/quart/deny")
async def deny_in_quart():
    return BODY, 451


WRAPPED = {
    "channels": CloseCodeMiddleware(channels_app, Guard()),
    "quart": CloseCodeMiddleware(quart_app, Guard()),
    "sanic": CloseCodeMiddleware(sanic_app, Guard()),
}


async def app(scope, receive, send):
    """Serve each framework below its name; the lifespan is sanic's, which needs one."""
    name = "sanic" if scope["type"] == "lifespan" else scope["path"].split("/")[1]
    await WRAPPED[name](scope, receive, send)
