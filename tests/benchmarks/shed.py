"""How long the event loop is late while half of 10 000 sessions are shed: ``python -m tests.benchmarks.shed``.

In one process and without a server, beside the same loop with the sessions at rest.
"""

import asyncio
import logging
import time

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings

SESSIONS = 10_000


class Client:
    """It stays."""

    def __init__(self):
        self.connected = False
        self.closed_with = None

    async def receive(self):
        if not self.connected:
            self.connected = True
            return {"type": "websocket.connect"}
        return await asyncio.get_running_loop().create_future()

    async def send(self, message):
        if message["type"] == "websocket.close":
            self.closed_with = message["code"]


async def handler(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def latest(stop):
    """The longest turn of the event loop, in milliseconds, until ``stop`` says so."""
    worst, last = 0.0, time.perf_counter()
    while not stop():
        await asyncio.sleep(0)
        now = time.perf_counter()
        worst, last = max(worst, now - last), now
    return worst * 1000


async def main():
    guard = Guard(Settings(max_sessions=SESSIONS, shed_rate=SESSIONS))
    app = CloseCodeMiddleware(handler, guard)
    clients = [Client() for _ in range(SESSIONS)]
    tasks = [
        asyncio.create_task(app({"type": "websocket", "path": "/", "headers": []}, client.receive, client.send))
        for client in clients
    ]
    while len(guard.sessions) < SESSIONS or not clients[-1].connected:
        await asyncio.sleep(0)
    until = time.monotonic() + 1
    at_rest = await latest(lambda: time.monotonic() > until)
    start = time.monotonic()
    guard.update(max_sessions=SESSIONS // 2)
    shedding = await latest(lambda: len(guard.sessions) <= SESSIONS // 2)
    took = time.monotonic() - start
    codes = {client.closed_with for client in clients}
    print(f"{SESSIONS // 2} of {SESSIONS} sessions shed in {took:.1f} s, with {codes}")
    print(f"longest turn of the event loop: {at_rest:.1f} ms at rest, {shedding:.1f} ms while shedding")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    logging.disable()
    asyncio.run(main())
