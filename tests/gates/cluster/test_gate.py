"""The gate on a real server: what is admitted, what is told, and what is left behind, whatever fails."""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Coroutine

import anyio
import pytest

from asgi_closecodes import events
from asgi_closecodes.gates import ClusterSessions
from asgi_closecodes.gates.cluster import RedisStore
from tests.support.fakes import FakeSession, refused
from tests.support.redis import binaries, running

from .at_once import at_once
from .processes import TTL, is_left_behind
from .proxy import Proxy

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_one_limit_holds_over_all(processes, server):
    for _ in range(4):
        processes.add(100, server.url)
    assert await processes.come(300) <= 100  # a busy machine has some wait for too long
    await processes.fill(100)
    assert await processes.come(50) == 0
    refusal = await refused(processes.gates[0])
    assert (refusal.cause, refusal.limit) == ("cluster", 100)


async def test_session_with_a_lease_and_quota_does_not_wait(processes, server):
    gate = processes.add(1000, server.url, lease_duration=30)
    assert await processes.come(1) == 1
    await processes.until(lambda: gate.lease.quota > gate.lease.used)
    server.pause()
    try:
        with anyio.fail_after(2):  # less than a session waits for a permit
            assert await processes.come(1) == 1
    finally:
        server.go_on()


async def test_permit_is_free_for_others_when_its_session_ends(processes, server):
    first, second = processes.add(10, server.url), processes.add(10, server.url)
    await processes.fill(10, first)
    assert await processes.come(1, second) == 0
    await processes.end(first, 4)
    await processes.fill(10, second)
    assert second.usage == 4


async def test_gate_that_stops_releases_its_permits_at_once(processes, server):
    first, second = processes.add(10, server.url, lease_duration=600), processes.add(10, server.url, lease_duration=600)
    await processes.fill(10, first)
    await processes.end(first, 10)
    await first.stop()
    processes.gates.remove(first)
    await processes.fill(10, second)


async def test_stopped_gate_starts_again_with_the_next_session(processes, server):
    gate = processes.add(10, server.url)
    assert await processes.come(2) == 2
    await processes.end(gate, 2)
    await gate.stop()
    assert await processes.come(2) == 2
    await processes.until(lambda: gate.lease.reply is not None and gate.lease.reply.used == 2)


async def test_no_connection_is_left(processes, server):
    before = len(is_left_behind(server))
    for _ in range(3):
        processes.add(10, server.url)
    await processes.fill(10)
    assert len(is_left_behind(server)) == before + 3
    for gate in processes.gates:
        await gate.stop()
    with anyio.fail_after(60):
        while len(is_left_behind(server)) > before:
            await anyio.sleep(0.01)


# Faults of the server


@at_once(seconds=[0.5, 3 * TTL])
async def test_server_that_stands_still(processes, server, seconds):
    before = len(is_left_behind(server))
    for _ in range(2):
        processes.add(20, server.url, fallback="closed")
    await processes.fill(20)
    gate = processes.gates[0]
    await processes.end(gate, gate.usage)
    held = processes.open
    server.pause()
    start = time.monotonic()
    try:
        while time.monotonic() - start < seconds:
            processes.look()
            await processes.come(2)
            assert processes.open <= 20
            await anyio.sleep(0.1)
    finally:
        server.go_on()
    assert processes.open >= held
    await processes.fill(20)
    assert await processes.come(10) == 0
    if seconds > TTL:
        assert [event.problem for event in processes.of(events.ClusterUnreachable)] == [
            "it does not answer in time"
        ] * 2
        await processes.until(lambda: len(processes.of(events.ClusterRecovered)) == 2)
        assert len(processes.of(events.ClusterFallback)) == 2
    with anyio.fail_after(60):  # those that were given up meanwhile
        while len(is_left_behind(server)) > before + 2:
            await anyio.sleep(0.01)


async def test_server_that_pauses_its_clients(processes, server):
    gate = processes.add(20, server.url)
    await processes.fill(10)
    server.command("CLIENT", "PAUSE", 3000)
    await processes.until(lambda: processes.of(events.ClusterUnreachable))
    await processes.until(lambda: processes.of(events.ClusterRecovered))
    await processes.fill(20)
    assert gate.usage == 20


@at_once(loss=["flush", "evict", "restart", "old dump"], binary=binaries())
async def test_server_that_lost_its_data_at_full_use(processes, loss, server):
    for _ in range(3):
        processes.add(30, server.url)
    await processes.come(1)
    if loss == "old dump":
        server.command("SAVE")
    await processes.fill(30)
    if loss == "flush":
        server.command("FLUSHALL")
    elif loss == "evict":
        server.command("DEL", "closecodes:{default}:grants")
    else:
        server.stop()
        if loss == "restart":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{server.folder}/dump.rdb")
        server.start()
    start = time.monotonic()
    while time.monotonic() - start < TTL * 1.5:
        processes.look()
        assert await processes.come(6) == 0
        await anyio.sleep(0.05)
    assert processes.open == 30
    assert processes.of(events.ClusterRelearning)
    await processes.end(processes.gates[0], 5)
    await processes.fill(30, processes.gates[1])


async def test_server_that_lost_the_script(processes, each_server):
    processes.add(10, each_server.url)
    await processes.fill(5)
    each_server.command("SCRIPT", "FLUSH")
    await processes.fill(10)
    assert not processes.of(events.ClusterSyncFailed)


@at_once(outcome=[("share", range(16, 21)), ("open", [35]), ("closed", [15])])
async def test_server_that_is_gone_for_longer_than_the_lease(processes, outcome):
    fallback, together = outcome
    with running() as server:
        gate, other = (processes.add(20, server.url, fallback=fallback) for _ in range(2))
        await processes.fill(15, gate)
        await processes.until(lambda: all(one.lease.reply and one.lease.reply.used == 15 for one in processes.gates))
        await processes.until(lambda: gate.lease.reply.workers == 2)
        server.stop()
        await processes.until(lambda: processes.of(events.ClusterFallback))
        await processes.until(lambda: gate.lease.in_fallback and other.lease.in_fallback)
        await processes.come(20)
        assert processes.open in together
        admitted = processes.open
        server.start()
        await processes.until(lambda: len(processes.of(events.ClusterRecovered)) == 2)
        assert processes.open == admitted  # nobody is closed because Redis was away
        assert gate.excess() == other.excess() == 0


async def test_server_that_is_not_there_at_the_start(processes, tmp_path):
    gate = processes.add(10, f"unix://{tmp_path}/none.sock")
    assert await processes.come(20) == 0  # it may be there in a moment
    assert processes.of(events.ClusterUnreachable)[0].problem == "it cannot be reached"
    await processes.until(lambda: processes.of(events.ClusterFallback))
    assert await processes.come(20, gate) == 8


@at_once(loss=["requests", "replies", "delay", "all"])
async def test_network_that_loses_or_delays(processes, server, loss):
    async with Proxy(server.socket) as proxy:
        behind = processes.add(20, proxy.url, fallback="closed")
        other = processes.add(20, server.url, fallback="closed")
        await processes.fill(8, behind)
        proxy.delay = 6 if loss == "delay" else 0
        proxy.drop_requests = loss in {"requests", "all"}
        proxy.drop_replies = loss in {"replies", "all"}
        start = time.monotonic()
        while time.monotonic() - start < TTL * 0.9:  # a partition that is shorter than the lease_duration
            processes.look()
            await processes.come(2, other)
            if behind.lease.time_left:
                await processes.come(2, behind)
            assert processes.open <= 20
            await anyio.sleep(0.05)
        proxy.delay = proxy.drop_requests = proxy.drop_replies = 0
        await processes.fill(20)
        assert await processes.come(5) == 0
        assert processes.open == 20
        await behind.stop()
        processes.gates.remove(behind)
        await processes.until(lambda: not proxy.connections)


@at_once(
    said=[
        (b"-CLUSTERDOWN The cluster is down\r\n", "its cluster is down"),
        (b"-ERR something new\r\n", "ResponseError"),
        (b"+OK\r\n", "TypeError"),
    ]
)
async def test_answer_that_is_an_error_is_explained(processes, server, said):
    answer, meaning = said
    async with Proxy(server.socket) as proxy:
        proxy.answer = answer
        gate = processes.add(10, proxy.url)
        await processes.come(1)
        assert meaning in processes.of(events.ClusterUnreachable)[0].problem
        proxy.answer = None
        await processes.until(lambda: processes.of(events.ClusterRecovered))
        await gate.stop()


async def test_shortest_lease_outlasts_a_slow_network(processes, server):
    async with Proxy(server.socket) as proxy:
        proxy.delay = 0.15  # in each direction
        gate = processes.add(20, proxy.url, fallback="closed")
        await processes.fill(5)
        start = time.monotonic()
        while time.monotonic() - start < 3 * TTL:
            processes.look()
            assert gate.lease.time_left > 0
            await anyio.sleep(0.05)
        assert not processes.of(events.ClusterSyncFailed)
        await gate.stop()
        processes.gates.remove(gate)


async def test_one_problem_is_told_once(processes, tmp_path):
    processes.add(10, f"unix://{tmp_path}/none.sock")
    await processes.come(1)
    await processes.until(lambda: len(processes.of(events.ClusterSyncFailed)) >= 3)
    assert len(processes.of(events.ClusterUnreachable)) == 1


async def test_eviction_policy_is_told_once(processes):
    with running(maxmemory="100mb", maxmemory_policy="allkeys-lru") as server:
        processes.add(10, server.url)
        await processes.fill(10)
        [event] = processes.of(events.ClusterMisconfigured)
        assert "allkeys-lru" in event.problem
        await processes.until(lambda: len(processes.of(events.ClusterSynced)) > 4)
        assert len(processes.of(events.ClusterMisconfigured)) == 1


async def test_lower_of_two_limits_holds_and_both_are_named(processes, server):
    low, high = processes.add(5, server.url), processes.add(50, server.url)
    await processes.come(1, low)
    assert await processes.come(50, high) <= 5
    await processes.fill(5)
    [event] = processes.of(events.ClusterMisconfigured)
    assert "50" in event.problem
    assert "5:" in event.problem
    await processes.end(low, low.usage)
    await low.stop()
    processes.gates.remove(low)
    await processes.fill(20, high)  # as soon as nobody has the lower one


# Faults of the process


async def test_event_loop_that_was_blocked_for_longer_than_the_ttl(processes, server):
    gate = processes.add(20, server.url, fallback="open")
    await processes.fill(5)
    await processes.until(lambda: gate.lease.quota > gate.lease.used)
    time.sleep(TTL)
    assert await processes.come(1) == 0
    await processes.until(lambda: gate.lease.time_left > 0)
    assert await processes.come(1) == 1


async def test_waiting_session_that_is_cancelled_leaves_no_trace(processes, server):
    gate = processes.add(20, server.url)
    server.pause()
    try:
        with anyio.move_on_after(0.1):
            await processes.come(5)
        assert (gate.lease.used, gate.lease.waiting) == (0, 0)
    finally:
        server.go_on()
    await processes.fill(20)


class CancelledAt(Coroutine):
    """A coroutine whose task is cancelled when it waits for the ``at``-th time; ``waits`` tells how often it did."""

    def __init__(self, coroutine, at):
        self._coroutine = coroutine
        self._at = at
        self.waits = 0

    def send(self, value):
        waits_for = self._coroutine.send(value)
        self.waits += 1
        if self.waits == self._at:
            asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
        return waits_for

    def throw(self, *error):
        return self._coroutine.throw(*error)

    def close(self):
        self._coroutine.close()

    def __await__(self):
        raise NotImplementedError

    def __getattr__(self, name):
        return getattr(self._coroutine, name)


@pytest.mark.parametrize("url", ["unix", "redis"])
async def test_task_may_be_cancelled_at_every_await(processes, server, url):
    loop = asyncio.get_running_loop()
    async with Proxy(server.socket) as proxy:
        url = server.url if url == "unix" else proxy.url
        before = len(is_left_behind(server))
        for at in itertools.count(1):
            gate = processes.add(20, url)
            tasks = []

            def start(loop, coroutine, *, at=at, tasks=tasks, **options):
                if coroutine.__qualname__ == "ProcessTask._contained":
                    coroutine = CancelledAt(coroutine, at)
                    tasks.append(coroutine)
                return asyncio.Task(coroutine, loop=loop, **options)

            loop.set_task_factory(start)
            gate.start()
            loop.set_task_factory(None)
            [task] = [one for one in asyncio.all_tasks() if one.get_coro() in tasks]
            synced_twice = asyncio.ensure_future(processes.until(lambda gate=gate: gate.lease.seq == 2))
            await asyncio.wait([task, synced_twice], return_when=asyncio.FIRST_COMPLETED, timeout=10)
            if synced_twice.done():
                break
            synced_twice.cancel()
            assert task.done()
            await gate.stop()
            processes.gates.remove(gate)
            assert server.command("ZCARD", "closecodes:{default}:expiry") == 0
        print(f"it waited {at - 1} times until its second sync")
        assert at > 5
        await gate.stop()
        processes.gates.remove(gate)
        with anyio.fail_after(60):
            while len(is_left_behind(server)) > before:
                await anyio.sleep(0.01)
        await processes.fill(3, processes.add(20, server.url))


async def test_forked_child_is_another_worker(processes, server):
    gate = processes.add(20, server.url)
    await processes.fill(5)
    ours = gate.lease.worker
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        said = f"{gate.lease.worker != ours} {gate.usage} {gate.lease.acquire()}"
        os.write(writable, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(readable, 100) == b"True 0 False"
    os.close(readable)
    os.close(writable)
    assert gate.lease.worker == ours
    await processes.fill(10)


async def test_rolling_restart_passes_no_limit_and_loses_no_permit(processes, server):
    for _ in range(4):
        processes.add(40, server.url)
    await processes.fill(40)
    for old in [*processes.gates]:
        new = processes.add(40, server.url)
        await processes.end(old, old.usage)
        await old.stop()
        processes.gates.remove(old)
        await processes.fill(40, new)
    assert processes.open == 40
    assert await processes.come(10) == 0


async def test_longer_lease_duration_keeps_the_lease_in_flight(processes, server):
    """A longer duration does not stretch the lease that was asked for already."""
    gate = processes.add(20, server.url)
    await processes.fill(1)
    gate.lease.ask()
    gate.lease_duration = 3600
    gate.lease.answer(dataclasses.replace(gate.lease.reply, seq=gate.lease.seq))
    assert gate.lease.time_left <= TTL


def test_another_event_loop_begins_anew(server):
    gate = ClusterSessions(10, server.url)

    async def visit():
        async with gate.admit(FakeSession()):
            return gate.usage

    for _ in range(3):
        assert asyncio.run(visit()) == 1
    assert server.command("ZCARD", "closecodes:{default}:expiry") == 0  # each left when its loop ended


def test_on_trio_it_says_so(server):
    import trio

    gate = ClusterSessions(10, server.url)

    async def visit():
        with pytest.raises(RuntimeError, match="do not run on trio|does not run on trio"):
            await gate.admit(FakeSession()).__aenter__()
        with pytest.raises(RuntimeError, match="trio"):
            gate.start()

    trio.run(visit)


# Limits


async def test_gate_without_a_limit_counts_and_asks_nobody(processes, tmp_path):
    gate = processes.add(None, f"unix://{tmp_path}/none.sock")
    assert await processes.come(50) == 50
    assert gate.usage == 50
    processes.look()
    assert not processes.told


async def test_limit_that_is_set_later_finds_what_is_open(processes, server):
    gate = processes.add(None, server.url)
    await processes.come(5)
    gate.limit = 5
    processes.look()
    await processes.until(lambda: gate.lease.reply is not None)
    assert await processes.come(3) == 0


async def test_limit_that_is_taken_away_ends_the_syncs(processes, server):
    gate = processes.add(5, server.url)
    await processes.fill(5)
    await processes.end(gate, 5)
    gate.limit = None
    await processes.until(lambda: server.command("ZCARD", "closecodes:{default}:expiry") == 0)
    assert await processes.come(20) == 20


async def test_lowered_limit_asks_for_a_share_of_the_sessions(processes, server):
    first, second = processes.add(30, server.url), processes.add(30, server.url)
    await processes.fill(20, first)
    await processes.fill(30, second)
    await processes.until(lambda: all(gate.lease.reply.used == 30 for gate in processes.gates))
    for gate in processes.gates:
        gate.limit = 15
    await processes.until(lambda: all(gate.excess() for gate in processes.gates))
    assert first.excess() == pytest.approx(10, abs=1)
    assert second.excess() == pytest.approx(5, abs=1)


async def test_zero_admits_nobody(processes, server):
    processes.add(0, server.url)
    assert await processes.come(5) == 0


# What is given


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://:s3cret@host", "begins with redis://"),
        ("localhost:6379", "begins with redis://"),
        ("redis://:s3cret@host:port", "cannot be read"),
        ("redis://", "name a host"),
        ("unix://", "name the socket"),
        ("redis+sentinel://host:26379", "name hosts and the service"),
        ("redis+sentinel://host:26379/mymaster/x", "number of a database"),
        ("redis+sentinel://:s3cret@host:26379,:26380/mymaster", "name a host"),
        ("redis+sentinel://host/mymaster?foo=s3cret", "option foo that"),
        ("redis+cluster://:s3cret@host:6379,other:port", "cannot be read"),
        ("redis+cluster://:s3cret@host/1", "a cluster has only 0"),
        ("redis+cluster://host?foo=s3cret", "option foo that"),
        ("redis://:s3cret@host/x", "number of a database"),
        ("redis://host?foo=s3cret", "option foo that"),
        ("redis://host?db=s3cret", "option db that"),
        ("redis://host?ssl_cert_reqs=none", "option ssl_cert_reqs that redis-py cannot use there: TLS is rediss://"),
        ("rediss://host?ssl_cert_reqs=s3cret", "an option or a value"),
        ("redis://:12?s3cret@host", "write %2F for /"),
        ("redis://:12/s3cret@host", "write %2F for /"),
        ("redis://:12#s3cret@host", "write %2F for /"),
        ("", "begins with redis://"),
    ],
)
def test_unusable_url_is_refused_without_its_password(url, problem):
    with pytest.raises(ValueError, match=problem) as info:
        ClusterSessions(1, url)
    assert "s3cret" not in str(info.value)


@pytest.mark.parametrize(
    "options",
    [
        {"limit": -1},
        {"lease_duration": 1},
        {"lease_duration": True},
        {"lease_duration": 1e9},
        {"fallback": "half"},
        {"name": "{x}"},
        {"name": ""},
    ],
)
def test_unusable_argument_is_refused(options):
    with pytest.raises(ValueError, match="use "):
        ClusterSessions(**{"limit": 1, "redis_url": "redis://localhost", **options})


def test_keys_of_a_limit_are_in_one_place_of_a_redis_cluster():
    from redis.crc import key_slot

    from asgi_closecodes.gates.cluster.redis.client import keys_of

    assert len({key_slot(key.encode()) for key in keys_of("chat:eu")}) == 1


async def test_state_can_be_read(processes, server):
    gate = processes.add(10, server.url, name="chat")
    await processes.fill(4)
    await processes.until(lambda: gate.lease.reply is not None and gate.lease.reply.used == 4)
    store = RedisStore(server.url, "chat")
    state = await store.state()
    await store.close()
    assert (state.limit, state.used) == (10, 4)
    [worker] = state.workers
    assert (worker.id, worker.used) == (gate.lease.worker, 4)
    assert 0 <= worker.age < worker.expires_in <= TTL
