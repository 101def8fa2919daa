"""Django Channels, with consumers that run in threads and with such that do not."""

from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

from asgi_closecodes import CloseWith, TryAgainLater
from tests.integrations.both import early_error, session, with_recipe

settings.configure()


class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data, bytes_data)


class Early(AsyncWebsocketConsumer):
    async def connect(self):
        raise early_error(self.scope["url_route"]["kwargs"]["name"])


class Crash(AsyncWebsocketConsumer):
    error = ValueError("secret")

    async def connect(self):
        await self.accept()
        raise self.error


class Busy(Crash):
    error = TryAgainLater(cause="db", retry_after=2)


class Asked(Crash):
    error = CloseWith(4001, "as asked")


class Keyed(Echo):
    async def connect(self):
        session(self.scope).key = "anna"
        await self.accept()


class SyncEcho(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        self.send(text_data, bytes_data)


class SyncEarly(WebsocketConsumer):
    def connect(self):
        raise early_error(self.scope["url_route"]["kwargs"]["name"])


class SyncCrash(WebsocketConsumer):
    error = ValueError("secret")

    def connect(self):
        self.accept()
        raise self.error


class SyncBusy(SyncCrash):
    error = TryAgainLater(cause="db", retry_after=2)


class SyncAsked(SyncCrash):
    error = CloseWith(4001, "as asked")


class SyncKeyed(SyncEcho):
    def connect(self):
        session(self.scope).key = "anna"
        self.accept()


def routes(echo, early, crash, busy, asked, keyed):
    return [
        path("echo", echo.as_asgi()),
        path("early/<str:name>", early.as_asgi()),
        path("crash/<str:name>", crash.as_asgi()),
        path("busy", busy.as_asgi()),
        path("asked", asked.as_asgi()),
        path("keyed", keyed.as_asgi()),
    ]


asynchronous = routes(Echo, Early, Crash, Busy, Asked, Keyed)
synchronous = routes(SyncEcho, SyncEarly, SyncCrash, SyncBusy, SyncAsked, SyncKeyed)


def make(routes):
    names = {"ProtocolTypeRouter": ProtocolTypeRouter, "URLRouter": URLRouter, "http": None}
    return with_recipe("Django Channels", bare=URLRouter(routes), routes=routes, **names)


both = make(asynchronous)
both_sync = make(synchronous)
