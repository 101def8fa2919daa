"""What a client does in each scenario, as raw messages, and what it sees in the end."""

import contextlib
import urllib.request

import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

PATIENCE_S = 15
"""Seconds after which something that should come does not."""


class WebSockets:
    """A framework in which each scenario has a path."""

    paths = {
        "early": "/early/7",
        "early_busy": "/early/busy",
        "early_asked": "/early/asked",
        "crash": "/crash/7",
        "busy": "/busy",
        "asked": "/asked",
        "keyed": "/keyed",
        "echo": "/echo",
    }
    says = dict.fromkeys(paths, ())
    first = {"keyed": (("x", "x"),), "echo": (("x", "x"),)}
    alive = None


class SocketIO:
    """Socket.IO, in which each scenario is an event."""

    paths = dict.fromkeys(WebSockets.paths, "/socket.io/?EIO=4&transport=websocket")
    says = {
        "early": ('40{"early":"7"}',),
        "early_busy": ('40{"early":"busy"}',),
        "early_asked": ('40{"early":"asked"}',),
        "crash": ("40", '42["crash","x"]'),
        "busy": ("40", '42["busy","x"]'),
        "asked": ("40", '42["asked","x"]'),
        "keyed": ('40{"key":"anna"}',),
        "echo": (),
    }
    first = {
        "keyed": (('40{"key":"anna"}', "40{"), ('42["echo","x"]', '42["echo","x"]')),
        "echo": (("40", "40{"), ('42["echo","x"]', '42["echo","x"]')),
    }
    alive = "40/legacy,"
    """What is answered as long as the connection is there."""


@contextlib.contextmanager
def opened(running, path, **options):
    with websockets.sync.client.connect(running.url + path, proxy=None, close_timeout=1, **options) as websocket:
        yield websocket


@contextlib.contextmanager
def staying(running, kind, scenario, top=""):
    """A session that is open, as the framework's answer says."""
    with opened(running, top + kind.paths[scenario]) as websocket:
        for said, answer in kind.first[scenario]:
            websocket.send(said)
            while not websocket.recv(timeout=PATIENCE_S).startswith(answer):
                pass
        yield websocket


def end_of(websocket, alive=None):
    """Return how a session ends: "open" if ``alive`` is answered."""
    try:
        if alive is not None:
            websocket.send(alive)
        while True:
            message = websocket.recv(timeout=PATIENCE_S)
            assert "secret" not in message
            if alive is not None and message.startswith(alive):
                return "open"
    except ConnectionClosed as closed:
        return "1006" if closed.rcvd is None else f"{closed.rcvd.code} {closed.rcvd.reason}".strip()


def visit(running, kind, scenario, *, bare=False):
    """Return how a session of ``scenario`` ends."""
    try:
        with opened(running, ("/bare" if bare else "") + kind.paths[scenario]) as websocket:
            with contextlib.suppress(ConnectionClosed):
                for said in kind.says[scenario]:
                    websocket.send(said)
            return end_of(websocket, kind.alive if bare else None)
    except InvalidStatus as refused:
        return f"HTTP {refused.response.status_code}"


def control(running, what):
    with urllib.request.urlopen(running.url.replace("ws", "http") + f"/control/{what}", data=b"") as response:
        return response.read().decode()
