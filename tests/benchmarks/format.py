"""What the log of one failure costs: formatted, beside the standard library's text of the same traceback; and counted only."""

import asyncio
import logging
import time
from contextlib import contextmanager

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.error_identity import fingerprint
from asgi_closecodes.events import SessionFailed
from asgi_closecodes.logs import ConsoleFormatter, JsonFormatter, LogObserver

from .harness.apps import find
from .harness.paired import Comparison
from .harness.suite import Benchmark

US = "us an error"
JSON, CONSOLE, PLAIN, SUPPRESSED = "JsonFormatter", "ConsoleFormatter", "logging.Formatter", "suppressed"
BENCHMARK = Benchmark(
    "The log of one failure in a Starlette application, an error with a cause",
    [
        Comparison(US, JSON, most=600),
        Comparison(US, CONSOLE, most=600),
        Comparison(US, JSON, PLAIN),
        Comparison(US, SUPPRESSED, most=20),
    ],
)


def _failure():
    """Return the event and the record of a handler that failed in an application as it is deployed."""
    seen = []

    async def endpoint(websocket):
        await websocket.accept()
        try:
            find({"room": 1}, "user")
        except KeyError as error:
            raise LookupError("no such user") from error

    class Catch(logging.Handler):
        def emit(self, record):
            seen.append(record)

    app = Starlette(routes=[WebSocketRoute("/rooms/{room}", endpoint)])
    guard = Guard(Settings(), observers=[lambda event: isinstance(event, SessionFailed) and seen.append(event)])

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        pass

    scope = {
        "type": "websocket",
        "asgi": {},
        "path": "/rooms/7",
        "headers": [],
        "query_string": b"",
        "client": ("::1", 5000),
    }
    logger = logging.getLogger("asgi_closecodes.error")
    with _heard_only_by(logger, Catch()):
        asyncio.run(CloseCodeMiddleware(app, guard)(scope, receive, send))
    return (
        next(event for event in seen if isinstance(event, SessionFailed)),
        next(record for record in seen if isinstance(record, logging.LogRecord)),
    )


@contextmanager
def _heard_only_by(logger, *handlers):
    before = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = handlers, False
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = before


def _timed(run, do):
    count = run.size(500, 5)

    def turn():
        start = time.process_time_ns()
        for _ in range(count):
            do()
        return {US: (time.process_time_ns() - start) / count / 1000}

    return turn


def _formatting(formatter):
    @contextmanager
    def subject(run):
        _, record = _failure()

        def do():
            record.exc_text = None  # where logging keeps what it has formatted once
            return formatter.format(record)

        assert "no such user" in do()
        yield _timed(run, do)

    return subject


BENCHMARK.subject(JSON)(_formatting(JsonFormatter()))
BENCHMARK.subject(CONSOLE)(_formatting(ConsoleFormatter()))
BENCHMARK.subject(PLAIN)(_formatting(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")))


@BENCHMARK.subject(SUPPRESSED)
@contextmanager
def suppressed(run):
    event, _ = _failure()
    counted = []
    observer = LogObserver(burst=1, per_minute=0, report=counted.append)

    def do():
        fingerprint(event.exception)
        observer(event)

    with _heard_only_by(logging.getLogger("asgi_closecodes.error"), logging.NullHandler()):
        do()
        counted.clear()
        yield _timed(run, do)
        assert counted, "nothing was suppressed"
