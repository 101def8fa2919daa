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
channels = CloseCodeMiddleware(
    ProtocolTypeRouter(
        {
            "websocket": URLRouter(
                [
                    re_path("^echo$", Echo.as_asgi()),
                    re_path("^crash$", Crash.as_asgi()),
                    re_path("^below/", inner),
                ]
            )
        }
    ),
    Guard(),
)

sanic_app = sanic.Sanic("routers")


@sanic_app.websocket("/echo")
async def echo_in_sanic(request, websocket):
    while (message := await websocket.recv()) is not None:
        await websocket.send(message)


sanic_wrapped = CloseCodeMiddleware(sanic_app, Guard())

quart_app = quart.Quart("routers")


@quart_app.websocket("/echo")
async def echo_in_quart():
    while True:
        await quart.websocket.send(await quart.websocket.receive())


@quart_app.websocket("/deny")
async def deny_in_quart():
    return BODY, 451


quart_wrapped = CloseCodeMiddleware(quart_app, Guard())
