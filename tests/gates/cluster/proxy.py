"""A TCP proxy in front of a unix socket that loses what it is told to lose."""

import asyncio
import contextlib


class Proxy:
    """Passes bytes on, but for what its attributes say."""

    def __init__(self, path):
        self._path = path
        self.drop_requests = self.drop_replies = False
        self.drop_messages = False
        """Drops all on connections that subscribe."""
        self.delay = 0.0
        self.answer = None
        """Sent in place of the server's answer to every command."""
        self._subscribed = set()
        self.connections = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error):
        self._server.close()
        for task in [*self.connections]:
            task.cancel()
        if self.connections:
            await asyncio.wait(self.connections)

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    async def _connected(self, reader, writer):
        task = asyncio.current_task()
        self.connections.add(task)
        down = None
        try:
            upstream, down = await asyncio.open_unix_connection(self._path)
            with contextlib.suppress(asyncio.CancelledError, OSError):
                async with asyncio.TaskGroup() as tasks:
                    both = [
                        tasks.create_task(self._pass(reader, down, writer, "drop_requests")),
                        tasks.create_task(self._pass(upstream, writer, None, "drop_replies")),
                    ]
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                    for one in both:
                        one.cancel()
        finally:
            self.connections.discard(task)
            for one in (writer, down):
                if one is not None:
                    one.transport.abort()
                    with contextlib.suppress(OSError, asyncio.CancelledError):
                        await one.wait_closed()

    async def _pass(self, reader, writer, back, dropped):
        with contextlib.suppress(OSError):
            await self._pass_on(reader, writer, back, dropped)

    async def _pass_on(self, reader, writer, back, dropped):
        while data := await reader.read(65536):
            if back is not None and self.answer is not None and b"EVAL" in data:
                back.write(self.answer)
                continue
            if b"SUBSCRIBE" in data and back is not None:
                self._subscribed.add(back)
            if self.drop_messages and (back or writer) in self._subscribed:
                continue
            if self.delay:
                await asyncio.sleep(self.delay)
            if not getattr(self, dropped) or b"HELLO" in data or b"CLIENT" in data:
                writer.write(data)
                await writer.drain()
