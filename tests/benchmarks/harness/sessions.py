"""One session after the other in this process, each in a task of its own as servers have it, to count what each takes.

The server is the least that there can be: two functions, and a peer that leaves after the handshake. What the middleware
does about sockets, where the server's ``send`` leads to one, is left to the benchmarks on live servers.
"""

import asyncio
import contextlib
import gc
import logging
import random
import time
from pathlib import Path

from asgi_closecodes.logs import configure_logging

from . import apps


class Refusing:
    """Refuses by hand, and is honest with its clients: a hint that grows, counts, a time-out, a few lines of log."""

    def __init__(self, respond):
        self._respond = respond
        self._counts = {}
        self._turn = 0.0
        self._window, self._written = -10.0, 0

    async def __call__(self, scope, receive, send):
        now = time.monotonic()
        self._turn = max(self._turn, now + 1) + 1
        hint = min(self._turn - now, 60) * random.uniform(0.9, 1.1)
        self._counts["full"] = self._counts.get("full", 0) + 1
        if now - self._window >= 10:
            self._window, self._written = now, 0
        self._written += 1
        if self._written <= 5:
            logging.getLogger("asgi_closecodes.gate").warning("refused a session of %s: full", scope["path"])
        async with asyncio.timeout(10):
            await self._respond(receive, send, hint, f"try again later; retry_after={hint:.1f}; cause=full")


async def _close(receive, send, _hint, reason):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 1013, "reason": reason})


async def _deny(receive, send, hint, reason):
    await receive()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"retry-after", b"%d" % (hint + 1))]
    await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": reason.encode()})


async def _crash(scope, receive, send):
    """As a server has it, which goes on."""
    with contextlib.suppress(KeyError):
        await apps.bare_crash(scope, receive, send)


SERVED = {
    "bare": lambda: apps.bare_echo,
    "no limit": lambda: apps.wrapped(apps.echo),
    "max_sessions": lambda: apps.wrapped(apps.echo, max_sessions=apps.ROOM),
    "1013 by hand": lambda: Refusing(_close),
    "refused by 1013": apps.WRAPPED["closing"],
    "HTTP 503 by hand": lambda: Refusing(_deny),
    "refused by HTTP 503": apps.WRAPPED["denying"],
    "bare crash": lambda: _crash,
    "crash in a storm": apps.WRAPPED["crash_in_a_storm"],
}
"""Builds the applications that are served."""


def serve(name, count):
    """Serve so many sessions of one of :data:`SERVED`."""
    import uvloop

    configure_logging("json", stream=Path("/dev/null").open("w"))  # noqa: SIM115 - logs are summed up at the exit
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        app = SERVED[name]()
        gc.freeze()  # what was imported is not theirs to look through
        runner.run(_serve(app, count))


async def _serve(app, count):
    loop = asyncio.get_running_loop()
    for number in range(count):
        coming = iter(({"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000, "reason": ""}))

        async def receive(coming=coming):
            return next(coming)

        async def send(message):
            pass

        await loop.create_task(app(_scope(1024 + number), receive, send))


def _scope(port):
    """Return what uvicorn says of a client."""
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", port),
        "root_path": "",
        "path": "/echo",
        "raw_path": b"/echo",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"upgrade", b"websocket"), (b"connection", b"Upgrade")],
        "subprotocols": [],
        "state": {},
        "extensions": {"websocket.http.response": {}},
    }
