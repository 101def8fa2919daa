"""Load on a server: open sessions that send in turn, each once in a number of seconds."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .connection import Connection, NoWebSocket, Refusal, Target

HANDSHAKE_TIMEOUT_S = 10.0
"""Seconds that a handshake may take."""

OPENING, SLOWEST = 20.0, 50
"""Seconds that a step may take to open, and sessions a second: at that rate it may take longer."""

_TICK = 0.005
"""Seconds between two rounds of sending."""

_CONNECT_ERRORS = (OSError, ssl.SSLError, TimeoutError, NoWebSocket)


class SlowOpening(TimeoutError):  # noqa: N818 - what the server is
    """Opening took too long: the server answers each handshake late, though none too late by itself."""


@dataclass(slots=True)
class Held:
    """Measurements while sessions were open and sent messages."""

    latencies: list[float] = field(default_factory=list)
    """Seconds from a message to its answer."""
    late: float = 0.0
    """Seconds by which this command was late itself, at the 99th percentile."""
    busy: float = 0.0
    """Share of a core that this command used."""


class Load:
    """Sessions to one server.

    :param every: seconds from one message of a session to its next.
    """

    def __init__(self, target: Target, address: tuple[Any, ...], tls: ssl.SSLContext | None, every: float) -> None:
        self.sessions: dict[Connection, None] = {}
        self.refusal: Refusal | None = None
        """First refusal since :meth:`forget`."""
        self.error: Exception | None = None
        """Last failure to connect since then."""
        self.at_once = 50
        """Handshakes that may wait for their answer at the same time."""
        self._target, self._address, self._tls, self._every = target, address, tls, every
        self._latencies: list[float] = []
        self._lateness: list[float] = []
        self._turns = iter(self._in_turn())
        self._talking: asyncio.Task[None] | None = None

    def forget(self) -> None:
        """Forget the refusal and the error, for a new step."""
        self.refusal = self.error = None

    async def connect(self) -> Connection:
        """Open and return one more session, which may be a refused one.

        :raises OSError: if there is no connection.
        :raises NoWebSocket: if the server answers with something else.
        """
        loop = asyncio.get_running_loop()
        server_hostname = self._target.url.host if self._tls else None
        connection = Connection(self._target, self._answered, self._ended)
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            try:
                await loop.create_connection(
                    lambda: connection, *self._address[:2], ssl=self._tls, server_hostname=server_hostname
                )
                await connection.opened
            except BaseException:
                connection.leave()
                connection.opened.cancel()
                raise
        if connection.refusal is None:
            self.sessions[connection] = None
        else:
            self._ended(connection)
        return connection

    async def open(self, count: int) -> None:
        """Open ``count`` more sessions, or as many as succeed before the first refusal or error."""
        wanted = iter(range(count))
        end = time.perf_counter() + OPENING + count / SLOWEST

        async def open_some() -> None:
            for _ in wanted:
                if self.error is not None or self.refusal is not None:
                    return
                if time.perf_counter() > end:
                    self.error = SlowOpening()
                    return
                try:
                    await self.connect()
                except _CONNECT_ERRORS as error:
                    self.error = self.error or error

        await asyncio.gather(*(open_some() for _ in range(min(count, self.at_once))))

    def close(self, count: int) -> None:
        """End the ``count`` newest sessions."""
        for _ in range(min(count, len(self.sessions))):
            self.sessions.popitem()[0].leave()

    def _ended(self, connection: Connection) -> None:
        self.sessions.pop(connection, None)
        self.refusal = self.refusal or connection.refusal

    # Messages

    def talk(self) -> None:
        """Have the sessions send from now on."""
        self._talking = asyncio.create_task(self._talk())

    async def stop(self) -> None:
        """End all sessions."""
        if self._talking is not None:
            self._talking.cancel()
            with suppress(asyncio.CancelledError):
                await self._talking
        self.close(len(self.sessions))

    async def _talk(self) -> None:
        due, last = 0.0, time.perf_counter()
        while True:
            await asyncio.sleep(_TICK)
            now = time.perf_counter()
            self._lateness.append(now - last - _TICK)
            due = min(due + len(self.sessions) * (now - last) / self._every, len(self.sessions))
            last = now
            for _ in range(int(due)):
                due -= 1
                connection = next(self._turns)
                if connection is not None and connection.asked_at is None:
                    connection.ask(time.perf_counter())

    def _in_turn(self) -> Iterator[Connection | None]:
        while True:
            turn = [*self.sessions]
            for connection in turn:
                if connection in self.sessions:
                    yield connection
            if not turn:
                yield None

    def _answered(self, connection: Connection) -> None:
        if connection.asked_at is not None:
            self._latencies.append(time.perf_counter() - connection.asked_at)
            connection.asked_at = None

    async def settle(self, wait: float, most: float) -> None:
        """Wait until each session has sent, and no answer is later than ``wait``; at most ``most`` seconds more."""
        await asyncio.sleep(self._every)
        end = time.perf_counter() + most
        while self._waits(time.perf_counter() - wait) and time.perf_counter() < end:  # noqa: ASYNC110 - time passes
            await asyncio.sleep(0.05)

    def _waits(self, since: float) -> bool:
        return any(each.asked_at is not None and each.asked_at < since for each in self.sessions)

    async def hold(self, seconds: float, limit: float) -> Held:
        """Measure for ``seconds``; answers still missing after ``limit`` at the end count, too."""
        self._latencies, self._lateness = [], []
        start, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        now = time.perf_counter()
        held = Held(self._latencies, percentile(self._lateness, 0.99), (time.process_time() - used) / (now - start))
        self._latencies = []
        waits = [now - each.asked_at for each in self.sessions if each.asked_at is not None]
        held.latencies += [wait for wait in waits if wait > limit]
        return held


def percentile(values: list[float], share: float) -> float:
    """Return the percentile ``share`` of the values; 0 without values."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else 0.0


def is_lack_of_files(error: Exception | None) -> bool:
    """Whether this process may open no more files."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def is_lack_of_ports(error: Exception | None) -> bool:
    """Whether this machine has no local port left to the server."""
    return isinstance(error, OSError) and error.errno in {errno.EADDRNOTAVAIL, errno.EADDRINUSE}


async def addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return the addresses of a host name.

    :raises OSError: if it has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [address for *_, address in found]
