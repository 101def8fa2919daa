"""Three applications whose capacity has other reasons each."""

import time


def _answering(prepare, work):
    async def app(scope, receive, send):
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        held = prepare()
        while (message := await receive())["type"] == "websocket.receive":
            work()
            await send({"type": "websocket.send", "text": message["text"]})
        del held

    return app


def _work():
    end = time.thread_time() + 0.005
    while time.thread_time() < end:
        pass


echo = _answering(lambda: None, lambda: None)
work = _answering(lambda: None, _work)
heavy = _answering(lambda: bytearray(b"x" * 200 * 1024), lambda: None)
