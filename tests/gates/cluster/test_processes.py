"""Four workers of uvicorn and one limit, counted at the clients."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter

import pytest
import websockets

from tests.support.servers import serve

from .at_once import at_once

LIMIT = 100
CLIENTS = 300
TTL = 3


class Clients:
    """Clients that come back when they are refused, until they are told to stop; each counts while it is open."""

    def __init__(self, url):
        self.url = url
        self.open = Counter()
        """By the process that serves them."""
        self.most = 0
        self.codes = Counter()
        self.tasks = []
        self.changed = asyncio.Event()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def come(self, count):
        self.tasks += [asyncio.create_task(self._client()) for _ in range(count)]

    async def _client(self):
        while True:
            with contextlib.suppress(OSError, TimeoutError, websockets.InvalidMessage):
                try:
                    async with websockets.connect(self.url, proxy=None, open_timeout=30, compression=None) as socket:
                        pid = int(await socket.recv())
                        self._count(pid, 1)
                        try:
                            await socket.wait_closed()
                        finally:
                            self._count(pid, -1)
                        self.codes[socket.close_code] += 1
                except websockets.ConnectionClosed as closed:
                    self.codes[closed.rcvd.code if closed.rcvd else 1006] += 1
                except websockets.InvalidStatus as refused:
                    self.codes[refused.response.status_code] += 1
            await asyncio.sleep(0.5)

    def _count(self, pid, change):
        self.open[pid] += change
        self.most = max(self.most, self.open.total())
        self.changed.set()

    async def until(self, condition, within):
        async with asyncio.timeout(within):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def serve_workers(server, tmp_path, setup="uvicorn-sansio", count=4, **settings):
    environment = {
        "CLOSECODES_REDIS_URL": server.url,
        "CLOSECODES_CLUSTER_MAX_SESSIONS": str(LIMIT),
        "CLOSECODES_CLUSTER_LEASE_DURATION": str(TTL),
        **settings,
    }
    options = ["--workers", str(count)]
    if setup.startswith("uvicorn"):  # after 5 s it kills a worker that is stopped
        options += ["--timeout-worker-healthcheck", "60"]
    return serve(setup, "tests.gates.cluster.app:app", tmp_path, *options, env=environment)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_four_workers_share_a_limit_and_a_dead_one_s_permits(server, tmp_path):
    """One limit holds over four workers, and a dead one's permits come back."""
    with serve_workers(server, tmp_path) as running:
        async with Clients(running.url) as clients:
            clients.come(CLIENTS)
            await clients.until(lambda: clients.open.total() == LIMIT, 30)
            await asyncio.sleep(2)
            assert clients.most == LIMIT
            victim, held = clients.open.most_common(1)[0]
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            await clients.until(lambda: clients.open.total() <= LIMIT - held, 5)
            await clients.until(lambda: clients.open.total() == LIMIT, 30)
            print(f"the places of a dead worker ({held}) were taken again after {time.monotonic() - killed:.2f} s")
            assert clients.most == LIMIT
            assert set(clients.codes) <= {1013, 1006, 503}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_worker_that_was_stopped_refuses_before_it_has_synced(server, tmp_path):
    with serve_workers(server, tmp_path) as running:
        async with Clients(running.url) as clients:
            clients.come(LIMIT)
            await clients.until(lambda: clients.open.total() == LIMIT, 30)
            victim, held = clients.open.most_common(1)[0]
            os.kill(victim, signal.SIGSTOP)
            try:
                clients.come(CLIENTS)
                # Its sessions are open as far as their clients know, and its places are taken by others.
                await clients.until(lambda: clients.open.total() == LIMIT + held, 30)
            finally:
                os.kill(victim, signal.SIGCONT)
            await asyncio.sleep(2)
            assert clients.most == LIMIT + held


@pytest.mark.parametrize("setup", ["uvicorn-sansio", "hypercorn-asyncio", "granian"])
def test_worker_that_is_told_to_end_leaves_before_it_does(server, tmp_path, setup):
    def workers():
        return server.command("ZCARD", "closecodes:{default}:expiry")

    with serve_workers(server, tmp_path, setup, count=2, CLOSECODES_CLUSTER_LEASE_DURATION="600") as running:
        deadline = time.monotonic() + 30
        while workers() < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert workers() == 2
        running.process.terminate()  # it tells its workers
        running.process.wait(30)
        assert workers() == 0, running.log()


class Logins:
    """One user, who logs in again and again, at two workers that let him have two sessions."""

    def __init__(self, url, workers):
        self.url = url
        self.workers = workers
        self.sockets = []
        """In the order of the logins."""

    async def come(self, worker=None):
        """Log in, at ``worker``: the other one stands still meanwhile, since the kernel gives to any."""
        others = [pid for pid in self.workers if pid != worker] if worker else []
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            socket = await websockets.connect(self.url, proxy=None, open_timeout=30, compression=None)
            self.sockets.append(socket)
            with contextlib.suppress(websockets.ConnectionClosed):  # replaced before it was served
                served_by = int(await socket.recv())
                assert worker in {None, served_by}
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)
        return socket

    def open(self):
        return [number for number, socket in enumerate(self.sockets) if socket.close_code is None]

    async def until_open(self, *numbers):
        async with asyncio.timeout(15):
            while self.open() != [*numbers]:
                await asyncio.sleep(0.01)


async def replaced(socket):
    async with asyncio.timeout(15):
        await socket.wait_closed()
    return (socket.close_code, socket.close_reason.rpartition("; ")[2]) == (1013, "cause=replaced")


@contextlib.asynccontextmanager
async def logins(server, tmp_path, lease_duration):
    environment = {
        "CLOSECODES_REDIS_URL": server.url,
        "CLOSECODES_CLUSTER_MAX_SESSIONS_PER_CLIENT": "2",
        "CLOSECODES_WHEN_CLIENT_FULL": "replace_oldest",
        "CLOSECODES_CLUSTER_LEASE_DURATION": str(lease_duration),
    }
    with serve("uvicorn-sansio", "tests.gates.cluster.app:app", tmp_path, "--workers", "2", env=environment) as running:
        async with asyncio.timeout(30):
            while len(channels := server.command("PUBSUB", "CHANNELS", "closecodes:*")) < 2:
                await asyncio.sleep(0.05)
        user = Logins(running.url, [int(channel.split(b"-")[-2]) for channel in channels])
        try:
            yield user
        finally:
            for socket in user.sockets:
                socket.transport.abort()
            await asyncio.gather(*(socket.wait_closed() for socket in user.sockets))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_third_login_closes_the_first_at_whichever_worker(server, tmp_path):
    async with logins(server, tmp_path, 600) as user:  # nothing but a message tells of it with this lease_duration
        one, other = user.workers
        for number, worker in enumerate([one, other, other, other, one, one, one, other, one]):
            await user.come(worker)
            if number >= 2:
                assert await replaced(user.sockets[number - 2])
                assert user.open() == [number - 1, number]


@at_once(lease_duration=[3, 600])
async def test_worker_that_was_stopped_sheds_when_it_goes_on(server, tmp_path, lease_duration):
    async with logins(server, tmp_path, lease_duration) as user:
        stopped, other = user.workers
        oldest = await user.come(stopped)
        await user.come(other)
        os.kill(stopped, signal.SIGSTOP)
        try:
            await user.come()
            await user.come()
            await asyncio.sleep(0 if lease_duration > 100 else lease_duration * 1.5)
            await user.until_open(0, 2, 3)  # the first one's peer has not heard of it yet
        finally:
            os.kill(stopped, signal.SIGCONT)
        if lease_duration < 100:  # it counted no more: the next who comes is one too many, as after an outage
            await asyncio.sleep(lease_duration)
            await user.come()
        assert await replaced(oldest)
        await user.until_open(len(user.sockets) - 2, len(user.sockets) - 1)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_worker_that_was_killed_holds_no_key(server, tmp_path):
    async with logins(server, tmp_path, 3) as user:
        killed, other = user.workers
        for worker in (killed, other):
            await user.come(worker)
        os.kill(killed, signal.SIGKILL)
        await user.until_open(1)
        await user.come()  # in the place of the one that still counts
        await user.until_open(1, 2)
        await user.come()
        await user.until_open(2, 3)
        await asyncio.sleep(3.5)
        await user.come()
        await user.until_open(3, 4)
