"""What one received-and-sent pair of messages costs in this process, without a server or an event loop's wait."""

import asyncio
import functools
import sys
import time
from contextlib import contextmanager

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings

from .harness.apps import counted_by_hand
from .harness.paired import Comparison
from .harness.suite import Benchmark

NS = "ns a pair"
RECEIVE, COUNTED = "receive wrapped by hand", "both wrapped and counted by hand"
BENCHMARK = Benchmark(
    "One received-and-sent pair of messages in the process",
    [
        Comparison(NS, "middleware", COUNTED, most=1.1),
        Comparison(NS, "middleware", "bare", by="difference"),
        *(
            Comparison(NS, peer, "bare", by="difference")
            for peer in (RECEIVE, COUNTED, "ExceptionMiddleware", "sentry-sdk", "OpenTelemetry")
        ),
        Comparison(NS, "with send_timeout", "middleware", by="difference", most=20),
        Comparison(NS, "with messages_per_second", "middleware", by="difference", most=150),
        Comparison("blocks left", "middleware", "bare", by="difference", most=10),
    ],
    pairs=41,
)

RECEIVED = {"type": "websocket.receive", "text": "x"}
SENT = {"type": "websocket.send", "text": "x"}


class Server:
    """The cheapest server there can be; it never suspends, so that no event loop is measured."""

    def __init__(self):
        self.connected = False

    async def receive(self):
        if not self.connected:
            self.connected = True
            return {"type": "websocket.connect"}
        return RECEIVED

    async def send(self, message):
        pass


def measuring(build, most=50_000):
    """Register a subject: ``build(app)`` returns the application around ``app``; it gets ``most`` pairs a turn."""

    @contextmanager
    def subject(run):
        pairs = run.size(most, 1_000)
        figures = {}

        async def echo(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            blocks = sys.getallocatedblocks()
            start = time.process_time_ns()
            for _ in range(pairs):
                await receive()
                await send(SENT)
            figures[NS] = (time.process_time_ns() - start) / pairs
            figures["blocks left"] = sys.getallocatedblocks() - blocks
            await send({"type": "websocket.close"})

        app = build(echo)
        with asyncio.Runner() as runner:

            def turn():
                server = Server()
                scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "scheme": "ws"}
                scope |= {"server": ("127.0.0.1", 80), "client": ("127.0.0.1", 5000)}
                runner.run(app(scope, server.receive, server.send))
                return dict(figures)

            yield turn

    return subject


@BENCHMARK.subject("bare")
@measuring
def _(app):
    return app


@BENCHMARK.subject("middleware")
@measuring
def _(app):
    return CloseCodeMiddleware(app, Guard(Settings(max_sessions=100)))


@BENCHMARK.subject("with send_timeout")
@measuring
def _(app):
    return CloseCodeMiddleware(app, Guard(Settings(max_sessions=100, send_timeout=60)))


@BENCHMARK.subject("with messages_per_second")
@measuring
def _(app):
    settings = Settings(max_sessions=100, messages_per_second=1e9)  # a handler alone in the process has no pause
    return CloseCodeMiddleware(app, Guard(settings))


@BENCHMARK.subject(RECEIVE)
@measuring
def _(app):
    async def wrapped(scope, receive, send):
        async def receive_and_look():
            return await receive()

        await app(scope, receive_and_look, send)

    return wrapped


@BENCHMARK.subject(COUNTED)
@measuring
def _(app):
    return counted_by_hand(app)


@BENCHMARK.subject("ExceptionMiddleware")
@measuring
def _(app):
    from starlette.middleware.exceptions import ExceptionMiddleware

    return ExceptionMiddleware(app)


@BENCHMARK.subject("sentry-sdk")
@measuring
def _(app):
    from sentry_sdk import init
    from sentry_sdk.integrations.asgi import SentryAsgiMiddleware

    init("http://key@127.0.0.1:9/1", transport=lambda event: None, traces_sample_rate=1.0, default_integrations=False)
    return SentryAsgiMiddleware(app)


@BENCHMARK.subject("OpenTelemetry")
@functools.partial(measuring, most=5_000)
def _(app):
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.trace import TracerProvider

    return OpenTelemetryMiddleware(app, tracer_provider=TracerProvider())
