"""What a cluster limit costs: ``python -m tests.benchmarks.cluster``.

Admission with a valid lease beside the gate of one process; the server's time for a sync with 10 to 10 000 workers;
and what a semaphore with one entry a session asks of the server instead.
"""

import asyncio
import gc
import logging
import random
import statistics
import time

from asgi_closecodes import Guard, Settings
from asgi_closecodes.gates import AllOf, ClusterSessions, MaxSessions
from asgi_closecodes.gates.cluster.lease import Lease, Reply
from asgi_closecodes.gates.cluster.store import SYNC, keys_of
from asgi_closecodes.session import Session
from tests.cluster.redis_server import running

SESSIONS = 5_000
TURNS = 21


async def admit(gate, sessions):
    start = time.perf_counter_ns()
    for session in sessions:
        async with gate.admit(session):
            pass
    return (time.perf_counter_ns() - start) / len(sessions) / 1000


async def admission(url):
    cluster = ClusterSessions(10**6, url)
    cluster.start()
    while cluster.lease.quota < 1:
        await asyncio.sleep(0.01)
    gates = {"MaxSessions": MaxSessions(10**6), "ClusterSessions": cluster}
    gates |= {f"AllOf({name})": AllOf(gate) for name, gate in gates.items()}
    times = {name: [] for name in gates}
    guard = Guard(Settings())
    scope = {"type": "websocket", "path": "/", "client": ("192.0.2.1", 5000)}
    gc.disable()
    for _ in range(TURNS):
        for name, gate in gates.items():
            sessions = [Session(guard, scope, None, None) for _ in range(SESSIONS)]
            times[name].append(await admit(gate, sessions))
            await asyncio.sleep(0)
    gc.enable()
    for name, turns in times.items():
        low, middle, high = statistics.quantiles(turns, n=4)
        print(f"{name:24} {middle:6.3f} us a session, quartiles {low:.3f} to {high:.3f}")
    for outer in ("{}", "AllOf({})"):
        one, other = (statistics.median(times[outer.format(name)]) for name in ("ClusterSessions", "MaxSessions"))
        print(f"ratio {outer.format(''):8} {one / other:.2f}")
    await cluster.stop()


def syncs(server, count):
    """The server's own time for a sync, as it counts it."""
    server.command("FLUSHALL")
    with server.client() as client:
        script = client.register_script(SYNC)
        workers = [Lease(1000 * count) for _ in range(count)]

        def sync(lease):
            lease.waiting = random.randrange(3)
            lease.answer(Reply(*script(keys=keys_of("benchmark"), args=lease.ask().arguments())))

        for worker in workers:
            sync(worker)
        server.command("CONFIG", "RESETSTAT")
        for _ in range(5_000):
            sync(random.choice(workers))
        calls = client.info("commandstats")["cmdstat_evalsha"]
        memory = sum(client.memory_usage(key) for key in keys_of("benchmark"))
        sync(workers[0])
    busy = calls["usec_per_call"] / 1e6
    idle, full = count * 3 / workers[0].ttl, count / workers[0].pace
    print(
        f"{count:6} workers: {busy * 1e6:.1f} us of the server a sync; {idle:.0f} syncs a second are {idle * busy:.2%} "
        f"of its core, in a full cluster {full:.0f} are {full * busy:.1%}; {memory / 1024:.0f} KiB"
    )


def commands():
    workers, sessions, length, refresh, ttl = 100, 100_000, 3600.0, 10.0, 30.0
    ours = workers / refresh * length
    theirs = sessions * (2 + length / (ttl / 3))  # ZADD, ZREM, and a heartbeat for each open session
    print(
        f"by arithmetic: {sessions} sessions of {length:.0f} s on {workers} workers, calls of the server in that time: {ours:.0f} here "
        f"({ours / sessions:.3f} a session); with a ZSET entry a session, renewed every {ttl / 3:.0f} s: {theirs:.0f} "
        f"({theirs / sessions:.0f} a session), or 2 and no way to notice a crash"
    )


def main():
    logging.disable()
    with running() as server:
        asyncio.run(admission(server.url))
        for count in (10, 1_000, 10_000):
            syncs(server, count)
    commands()


if __name__ == "__main__":
    main()
