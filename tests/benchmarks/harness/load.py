"""The load generator: picows on uvloop, in a process of its own on a core of its own; it does what it is told and counts.

Whatever a client saw is counted by outcome, so that a benchmark can tell whether its sums are right: a close code,
1006 where the connection ended without one, or the status of an HTTP response.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import os
import socket
import statistics
import time
from collections import Counter, deque
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

from picows import WSError, WSListener, WSMsgType, ws_connect

PAYLOAD = b'{"type":"message","body":"a line of chat, of usual length"}'
PATIENCE = 30
"""Seconds after which what does not answer is counted as such."""


class Client(WSListener):
    """A socket that asks for echoes, and that knows how it ended."""

    def __init__(self):
        self.asked = deque()  # when each message was due that has not come back
        self.latencies = []
        self.is_hasty = False
        self.code = None
        self.transport = None

    def on_ws_connected(self, transport):
        self.transport = transport

    def on_ws_frame(self, transport, frame):
        if frame.msg_type is WSMsgType.CLOSE:
            self.code = int.from_bytes(frame.get_payload_as_bytes()[:2], "big") or 1005
            transport.send_close(frame.get_close_code())
            transport.disconnect()
            return
        now = time.perf_counter_ns()
        self.latencies.append(now - self.asked.popleft())
        if self.is_hasty:
            self.ask(now)

    def ask(self, due):
        self.asked.append(due)
        self.transport.send(WSMsgType.TEXT, PAYLOAD)

    def outcome(self):
        return self.code or (1006 if self.transport.is_disconnected else "open")


class Knock(asyncio.Protocol):
    """A handshake, and how it is answered. Bare, because it must cost less than the server's part in it."""

    REQUEST = (
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )

    def __init__(self):
        self.outcome = asyncio.get_running_loop().create_future()
        self._transport = None
        self._heard = b""
        self._code = 1006

    def connection_made(self, transport):
        self._transport = transport
        transport.write(self.REQUEST)

    def data_received(self, data):
        self._heard += data
        head, end, frame = self._heard.partition(b"\r\n\r\n")
        if not end:
            return
        status = int(head[9:12])
        if status != 101:
            self._code = status
        elif len(frame) >= 4 and frame[0] == 0x88 and len(frame) == 2 + frame[1]:
            self._code = int.from_bytes(frame[2:4], "big")
            self._transport.write(b"\x88\x82\0\0\0\0" + frame[2:4])  # masked with zeros: the code again

    def connection_lost(self, error):
        self.outcome.set_result(self._code)


class Flooder(asyncio.Protocol):
    """Sends messages as fast as its peer reads them, many frames at once; reads what comes back, and counts it."""

    FRAME = bytes((0x81, 0x80 | len(PAYLOAD), 0, 0, 0, 0)) + PAYLOAD  # masked with zeros
    CHUNK = FRAME * 500

    def __init__(self):
        self.opened = asyncio.get_running_loop().create_future()
        self.closed = asyncio.get_running_loop().create_future()
        self.transport = None
        self._heard = b""
        self._echoed = 0  # bytes
        self._may_write = True
        self._next = None  # the handle of its next turn

    @property
    def echoes(self):
        """Return how many of its messages have come back."""
        return self._echoed // (len(PAYLOAD) + 2)

    def connection_made(self, transport):
        self.transport = transport
        transport.set_write_buffer_limits(high=len(self.CHUNK))
        transport.write(Knock.REQUEST)

    def data_received(self, data):
        if self.opened.done():
            self._echoed += len(data)
            return
        self._heard += data
        head, end, rest = self._heard.partition(b"\r\n\r\n")
        if end:
            self._echoed = len(rest)
            self.opened.set_result(int(head[9:12]))
            self._flood_soon()

    def pause_writing(self):
        self._may_write = False

    def resume_writing(self):
        self._may_write = True
        self._flood_soon()

    def _flood_soon(self):
        if self._next is None:
            self._next = asyncio.get_running_loop().call_soon(self._flood)

    def _flood(self):
        self._next = None
        if self._may_write and not self.transport.is_closing():
            self.transport.write(self.CHUNK)
            self._flood_soon()

    def connection_lost(self, error):
        self.closed.set_result(None)


class Crowd:
    """What the generator can be told to do; its sockets stay open, in groups."""

    def __init__(self):
        self.groups = {}
        self._flooder = None

    async def held(self):
        """Return how many sockets are open; those of a server that has ended are not."""
        return sum(not client.transport.is_disconnected for clients in self.groups.values() for client in clients)

    async def open(self, group, url, count, headers=()):
        """Open ``count`` sockets, with more ``headers`` of their handshakes."""
        clients = self.groups.setdefault(group, [])
        wanted = iter(range(count))

        async def connect():
            for _ in wanted:
                clients.append(await _connect(url, headers))

        await asyncio.gather(*(connect() for _ in range(min(count, 50))))

    async def close(self, group):
        """Drop the sockets of ``group`` without a word; return how they had ended by then."""
        clients = self.groups.pop(group)
        outcomes = Counter(client.outcome() for client in clients)
        await _drop(clients)
        return dict(outcomes)

    async def echo(self, group, seconds):
        """Let each socket of ``group`` send its next message when the last one has come back."""
        clients = self.groups[group]
        latencies = []
        for client in clients:
            client.latencies, client.is_hasty = latencies, True
        start = time.perf_counter()
        for client in clients:
            client.ask(time.perf_counter_ns())
        await asyncio.sleep(seconds)
        for client in clients:
            client.is_hasty = False
        await _all_back(clients)
        return {"count": len(latencies), "seconds": time.perf_counter() - start, **percentiles(latencies)}

    async def knock(self, url, seconds, at_once=32):
        """Open sockets, ``at_once`` at a time, and wait for each to be closed; count the outcomes."""
        outcomes = Counter()
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        start = time.perf_counter()

        async def knock_on():
            while time.perf_counter() < start + seconds:
                _, knock = await loop.create_connection(Knock, address.hostname, address.port)
                async with asyncio.timeout(PATIENCE):
                    outcomes[await knock.outcome] += 1

        await asyncio.gather(*(knock_on() for _ in range(at_once)))
        return {"outcomes": dict(outcomes), "seconds": time.perf_counter() - start}

    async def flood(self, url):
        """Open a socket that floods until :meth:`stop_flood`."""
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        _, self._flooder = await loop.create_connection(Flooder, address.hostname, address.port)
        async with asyncio.timeout(PATIENCE):
            status = await self._flooder.opened
        assert status == 101, f"the flooder was answered with {status}"

    async def stop_flood(self):
        """Drop the socket that floods; return how many echoes it had, and whether it was open until now."""
        was_open = not self._flooder.closed.done()
        self._flooder.transport.abort()
        await self._flooder.closed
        return {"echoes": self._flooder.echoes, "was_open": was_open}

    async def overload(self, group, url, seconds, messages_per_second, arrivals_per_second):
        """Let each socket of ``group`` send at its pace while others arrive at theirs; who is admitted joins in.

        Latencies are those of ``group``. They count from the moment at which a message was due; what has not come back
        in the end counts with the time that it has waited by then.
        """
        clients = self.groups[group]
        latencies, outcomes, joined = [], Counter(), []
        for client in clients:
            client.latencies = latencies
        start = time.perf_counter()
        until = start + seconds

        async def chat(client, due):
            while due < until:
                await asyncio.sleep(due - time.perf_counter())
                if client.transport.is_disconnected:
                    return
                client.ask(int(due * 1e9))
                due += 1 / messages_per_second

        async def arrive():
            try:
                joined.append(client := await _connect(url))
            except (WSError, OSError) as error:
                outcomes[_reason(error)] += 1
            else:
                await chat(client, time.perf_counter() + 1 / messages_per_second)

        tasks = [
            asyncio.create_task(chat(client, start + number / len(clients) / messages_per_second))
            for number, client in enumerate(clients)
        ]
        for number in range(int(arrivals_per_second * seconds)):
            await asyncio.sleep(start + number / arrivals_per_second - time.perf_counter())
            tasks.append(asyncio.create_task(arrive()))
        await asyncio.sleep(until - time.perf_counter())
        took = time.perf_counter() - start
        count = len(latencies)
        now = time.perf_counter_ns()
        late = [now - due for client in clients for due in client.asked]
        figures = {"count": count, "seconds": took, **percentiles([*latencies, *late])}
        for task in tasks:
            task.cancel()
        for problem in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(problem, Exception):
                raise problem
        outcomes.update(client.outcome() for client in joined)
        outcomes["unanswered"] = int(arrivals_per_second * seconds) - outcomes.total()
        await _drop(joined)
        await _all_back(clients)
        return {**figures, "outcomes": dict(outcomes)}


async def _all_back(clients):
    async with asyncio.timeout(PATIENCE):
        while any(client.asked for client in clients):
            await asyncio.sleep(0.001)


async def _drop(clients):
    for client in clients:
        client.transport.underlying_transport.abort()
    await asyncio.gather(*(client.transport.wait_disconnected() for client in clients))


_addresses = itertools.cycle(
    f"127.{one}.{two}.{three}" for one in range(1, 9) for two in range(250) for three in range(1, 250)
)


def _own_address(_url):
    """Return a socket with an address of its own, as clients have: who counts by client would be flattered by one."""
    own = socket.socket()
    own.setblocking(False)
    own.bind((next(_addresses), 0))
    return own


async def _connect(url, headers=()):
    _, client = await ws_connect(
        Client,
        url,
        max_redirects=0,
        websocket_handshake_timeout=PATIENCE,
        socket_factory=_own_address,
        extra_headers=headers,
    )
    return client


def _reason(error):
    """Return the HTTP status that answered a handshake, or what else went wrong with it."""
    response = getattr(error, "response", None)
    return type(error).__name__ if response is None else int(response.status)


def percentiles(latencies):
    """Return the median and the 99th percentile in milliseconds, of nanoseconds."""
    if len(latencies) < 2:
        return {"p50": float("nan"), "p99": float("nan")}
    cuts = statistics.quantiles(latencies, n=100)
    return {"p50": cuts[49] / 1e6, "p99": cuts[98] / 1e6}


def _generate(pipe: Connection, core: int) -> None:
    """Do what comes through the pipe until it ends."""
    import uvloop

    os.sched_setaffinity(0, {core})
    gc.disable()  # what it would stall is what is measured; that of the servers is left as users have it

    async def work():
        crowd = Crowd()
        while True:
            try:
                command, arguments = await asyncio.to_thread(pipe.recv)
            except EOFError:
                return
            gc.collect()  # between two pieces of work: a full collection takes 0.1 s where there are many sockets
            try:
                pipe.send((await getattr(crowd, command)(*arguments), None))
            except Exception as error:  # as text: not all can be sent
                pipe.send((None, f"{command}: {type(error).__name__}: {error}"))

    uvloop.run(work())


class Load:
    """The generator, seen from the benchmark: ``load.echo("group", 0.5)`` runs :meth:`Crowd.echo` there."""

    def __init__(self, core: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_generate, args=(theirs, core), daemon=True)
        self._process.start()
        theirs.close()

    def __getattr__(self, command):
        def run(*arguments):
            self._pipe.send((command, arguments))
            result, error = self._pipe.recv()
            if error is not None:
                raise RuntimeError(f"the load generator failed in {error}")
            return result

        return run

    def stop(self) -> None:
        """End the generator and its sockets."""
        self._pipe.close()
        self._process.join(5)
        self._process.kill()
        self._process.join()
