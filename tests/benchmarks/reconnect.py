"""How often a client knocks at a server that accepts in order to close with 1013: ``python -m tests.benchmarks.reconnect``.

For ``--seconds`` each, against a server in this process: the reconnecting iterator of ``websockets``, and this library's,
without and with the hint of a full server.
"""

import argparse
import asyncio
import logging

import websockets

from asgi_closecodes.client import connect


async def with_websockets(url):
    async for websocket in websockets.connect(url, proxy=None):
        try:
            async for _ in websocket:
                pass
        except websockets.ConnectionClosed:
            continue


async def with_this_library(url):
    async for websocket in connect(url):
        async for _ in websocket:
            pass


async def knocks(client, reason, seconds):
    count = 0

    async def full(websocket):
        nonlocal count
        count += 1
        await websocket.close(1013, reason)

    async with websockets.serve(full, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        task = asyncio.create_task(client(f"ws://127.0.0.1:{port}"))
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.wait([task])
    return count


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    seconds = parser.parse_args().seconds
    hint = "try again later; retry_after=2.0; cause=full"
    for name, client, reason in (
        (f"websockets {websockets.__version__}", with_websockets, ""),
        ("asgi_closecodes.client", with_this_library, ""),
        ("asgi_closecodes.client, retry_after=2.0", with_this_library, hint),
    ):
        print(f"{await knocks(client, reason, seconds):6} connections in {seconds:g} s: {name}")


if __name__ == "__main__":
    logging.getLogger("asgi_closecodes.client").setLevel(logging.ERROR)
    asyncio.run(main())
