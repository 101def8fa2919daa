"""The server of the library websockets, with a handler that fails: what it does by itself about it."""

import argparse
import asyncio
import logging

from websockets.asyncio.server import serve

from .apps import find


async def crash(socket):
    find({"room": 1}, "user")


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    logging.basicConfig()
    async with serve(crash, options.host, options.port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
