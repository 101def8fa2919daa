"""What the middleware adds to one received-and-sent pair of messages: ``python -m tests.benchmarks.message``.

Bare and wrapped take turns in one process, and the median of the differences counts: the machine's speed drifts.
Blocks that stay allocated are counted too: a message must leave none behind.
"""

import asyncio
import gc
import statistics
import sys
import time

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings

PAIRS = 50_000
TURNS = 31

RECEIVED = {"type": "websocket.receive", "text": "x"}
SENT = {"type": "websocket.send", "text": "x"}


async def echo(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    blocks = sys.getallocatedblocks()
    start = time.perf_counter_ns()
    for _ in range(PAIRS):
        await receive()
        await send(SENT)
    scope["result"].update(ns=(time.perf_counter_ns() - start) / PAIRS, blocks=sys.getallocatedblocks() - blocks)
    await send({"type": "websocket.close"})


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


async def measure(app):
    server = Server()
    result = {}
    scope = {"type": "websocket", "path": "/", "headers": [], "result": result}
    await app(scope, server.receive, server.send)
    return result


async def main():
    wrapped = CloseCodeMiddleware(echo, Guard(Settings(max_sessions=100)))
    gc.disable()
    pairs = [(await measure(echo), await measure(wrapped)) for _ in range(TURNS)]
    differences = sorted(with_["ns"] - bare["ns"] for bare, with_ in pairs)
    quarter = len(differences) // 4
    print(f"bare       {statistics.median(bare['ns'] for bare, _ in pairs):6.0f} ns a pair")
    print(f"middleware {statistics.median(with_['ns'] for _, with_ in pairs):6.0f} ns a pair")
    print(
        f"added      {statistics.median(differences):6.0f} ns a pair, "
        f"quartiles {differences[quarter]:.0f} to {differences[-1 - quarter]:.0f}, {TURNS} turns of {PAIRS} pairs"
    )
    print(f"blocks left by {PAIRS} pairs: bare {pairs[-1][0]['blocks']}, middleware {pairs[-1][1]['blocks']}")


if __name__ == "__main__":
    asyncio.run(main())
