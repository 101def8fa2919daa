"""Sessions in this process, without a server: peers that say what they are told to, and stay until they are closed."""

import asyncio


class Peer:
    """Connects, and says nothing more; its server never suspends ``send``."""

    def __init__(self, app, path="/"):
        self.closed_with = None
        self._app = app
        self._path = path
        self._connected = False

    def visit(self):
        return self._app({"type": "websocket", "path": self._path, "headers": []}, self.receive, self.send)

    async def receive(self):
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        return await asyncio.get_running_loop().create_future()

    async def send(self, message):
        if message["type"] == "websocket.close":
            self.closed_with = message["code"]


class Talker(Peer):
    """Has always one more message."""

    MESSAGE = {"type": "websocket.receive", "text": "x"}

    async def receive(self):
        return self.MESSAGE if self._connected else await super().receive()


async def stay(scope, receive, send):
    """Accept, and wait for the end."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def crowd(app, guard, count):
    """Have ``count`` peers visit an application that lets them :func:`stay`; return them and their tasks."""
    peers = [Peer(app) for _ in range(count)]
    before = len(guard.sessions)
    tasks = [asyncio.create_task(peer.visit()) for peer in peers]
    while len(guard.sessions) < before + count:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return peers, tasks
