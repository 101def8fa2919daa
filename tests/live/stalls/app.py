"""Handlers that block the event loop, each its own way; the line that does so ends in ``# BLOCKS``."""

import ctypes
import json
import re
import socket
import threading
import time
import urllib.request

from fastapi import FastAPI, WebSocket

from asgi_closecodes import CloseCodeMiddleware
from asgi_closecodes.logs import configure_logging

BLOCK_S = 0.6

configure_logging(format="json")
app = FastAPI()
lock = threading.Lock()
libc = ctypes.PyDLL(None)  # its functions are called with the GIL held


def slow_site():
    """Serve HTTP slowly, in a thread; return the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                time.sleep(BLOCK_S)
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


PORT = slow_site()
LARGE = [{"id": number, "name": f"row {number}", "tags": ["a", "b", None, 1.5]} for number in range(330_000)]
"""20 MB as JSON."""


def hold_the_lock(taken):
    with lock:
        taken.set()
        time.sleep(BLOCK_S)


def sleeps():
    time.sleep(BLOCK_S)  # BLOCKS


def asks_by_http():
    urllib.request.urlopen(f"http://127.0.0.1:{PORT}/").close()  # BLOCKS


def dumps():
    json.dumps(LARGE)  # BLOCKS


def matches():
    re.match(r"(a|aa)+$", "a" * 30 + "b")  # BLOCKS


def waits_for_a_lock():
    taken = threading.Event()
    threading.Thread(target=hold_the_lock, args=[taken]).start()
    taken.wait()
    with lock:  # BLOCKS
        pass


def holds_the_gil():
    libc.usleep(int(BLOCK_S * 1e6))  # BLOCKS


KINDS = {kind.__name__: kind for kind in (sleeps, asks_by_http, dumps, matches, waits_for_a_lock, holds_the_gil)}


@app.websocket("/blocks/{kind}")
async def block(websocket: WebSocket, kind: str) -> None:
    """Block whenever the client says so."""
    await websocket.accept()
    async for _ in websocket.iter_text():
        KINDS[kind]()
        await websocket.send_text("done")


app.add_middleware(CloseCodeMiddleware)
