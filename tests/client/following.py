"""A client in a hurry, and a peer that says what a test wants it to."""

import asyncio
import base64
import contextlib
import gc
import hashlib
import re
import socketserver
import threading
from contextlib import asynccontextmanager, contextmanager

import anyio
import trio

from asgi_closecodes.client import Backoff, GaveUp, connect

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455 section 1.3."""


def eager(**options):
    """The rule, in a hurry."""
    return Backoff(random=lambda: 0.01, **options)


async def follow(url, **options):
    """Read what comes until the loop ends; return the events and the messages."""
    events, messages = [], []
    try:
        async for websocket in connect(url, on_event=events.append, **options):
            async for message in websocket:
                messages.append(message)  # noqa: PERF401 - what came before an error counts
    except GaveUp as error:
        events.append(error)
    return events, messages


@contextmanager
def peer(behaviour):
    """A server that completes each handshake and then does with the socket what ``behaviour`` says; yields its URL."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self):
            request = b""
            while b"\r\n\r\n" not in request:
                request += self.request.recv(65536)
            key = re.search(rb"sec-websocket-key: *(\S+)", request, re.IGNORECASE)[1]
            accept = base64.b64encode(hashlib.sha1(key + MAGIC).digest())
            self.request.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            with contextlib.suppress(OSError):
                behaviour(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"ws://127.0.0.1:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()


def living():
    """Return the number of tasks."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return trio.lowlevel.current_statistics().tasks_living


@asynccontextmanager
async def no_task_left():
    """Check that the tasks of its block end."""
    before = living()
    yield
    gc.collect()
    with anyio.fail_after(60):
        while living() > before:
            await anyio.sleep(0.01)
