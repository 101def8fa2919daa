"""A handler that waits for its client to leave, and some that answer late: when the process gets SIGUSR1."""

import json
import signal

import anyio

from asgi_closecodes import CloseCodeMiddleware, TryAgainLater
from asgi_closecodes.logs import configure_logging

configure_logging(format="json", level="DEBUG")
answers = []


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        raise NotImplementedError  # no lifespan
    await receive()
    handler = scope["path"].removeprefix("/late/")
    if handler != scope["path"]:
        signal.signal(signal.SIGUSR1, lambda *_: answers.append(handler))
        print(json.dumps({"path": scope["path"]}), flush=True)
        while handler not in answers:
            await anyio.sleep(0.01)
        await anyio.sleep(0.1)  # the server has read that the client has left
    if handler == "refuse":
        raise TryAgainLater(cause="late")
    await send({"type": "websocket.accept"})
    if handler == "return":
        return
    if handler == "send":
        await send({"type": "websocket.send", "text": "x"})
    if handler == "close":
        await send({"type": "websocket.close", "code": 4000})
        return
    while (await receive())["type"] != "websocket.disconnect":
        pass


app = CloseCodeMiddleware(app)
