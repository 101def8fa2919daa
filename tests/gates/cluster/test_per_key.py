"""The limit of one key over several processes, on a real server."""

import asyncio

import anyio
import pytest

from asgi_closecodes import TryAgainLater, events
from asgi_closecodes.gates import ClusterSessionsPerKey
from asgi_closecodes.gates.cluster import CountRequest, KeyCount, RedisStore, counts
from asgi_closecodes.gates.cluster.per_key import _digest
from tests.support.asgi import events_of
from tests.support.fakes import FakeSession
from tests.support.redis import running

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Processes:
    def __init__(self, url):
        self.url = url
        self.gates = []
        self.places = []
        self.told = []

    def add(self, limit=3, **options):
        options = {"key": lambda session: session.scope["client"], "lease_duration": 2, **options}
        gate = ClusterSessionsPerKey(limit, options.pop("redis_url", self.url), **options)
        gate.attach(self.told.append)
        self.gates.append(gate)
        return gate

    async def enter(self, gate, key):
        place = gate.admit(FakeSession(key))
        try:
            await place.__aenter__()
        except TryAgainLater as refusal:
            assert refusal.cause == "client"
            return False
        self.places.append((gate, key, place))
        return True

    async def come(self, count, gate=None, key="ann"):
        gates = [gate] if gate else self.gates
        return sum(await asyncio.gather(*(self.enter(gates[number % len(gates)], key) for number in range(count))))

    async def end(self, gate, count=1):
        for pair in [pair for pair in self.places if pair[0] is gate][:count]:
            self.places.remove(pair)
            await pair[2].__aexit__(None, None, None)

    async def until(self, condition, seconds=60):
        with anyio.fail_after(seconds):
            while not await condition():
                for gate in self.gates:
                    gate.sample()
                await anyio.sleep(0.02)


@pytest.fixture
async def processes(server):
    processes = Processes(server.url)
    yield processes
    for gate in processes.gates:
        await gate.stop()


async def test_key_has_one_limit_over_all_processes(processes):
    for _ in range(4):
        processes.add()
    assert await processes.come(40) == 3
    assert await processes.come(40, key="bob") == 3
    assert await processes.come(5, key=None) == 5  # who has no key is not limited


async def test_permit_is_free_for_others_when_its_session_ends(processes):
    first, second = processes.add(), processes.add()
    assert await processes.come(3, first) == 3
    assert await processes.come(1, second) == 0
    await processes.end(first)

    async def admitted():
        return await processes.come(1, second)

    await processes.until(admitted)
    assert await processes.come(1, second) == 0


async def test_stopped_processes_sessions_count_no_more(processes):
    first, second = processes.add(), processes.add()
    assert await processes.come(3, first) == 3
    await first.stop()
    processes.gates.remove(first)
    assert await processes.come(3, second) == 3


async def test_dead_processes_sessions_count_no_more_after_the_ttl(processes):
    store = RedisStore(processes.url)
    reply = await store.count(CountRequest("dead", 1, 2.0, 3, [KeyCount(_digest("ann"), 0, 5)]))
    assert (reply.known, reply.admitted) == (False, [(3, 0)])
    await store.close()
    gate = processes.add()
    assert await processes.come(3) == 0

    async def admitted():
        return await processes.come(1, gate)

    await processes.until(admitted)
    assert await processes.come(3) == 2


@pytest.mark.parametrize(("fallback", "admitted"), [("share", 3), ("open", 3), ("closed", 0)])
async def test_process_without_the_server_decides_by_itself(processes, fallback, admitted):
    with running() as server:
        for _ in range(2):
            processes.add(redis_url=server.url, fallback=fallback)
        assert await processes.come(2, key="bob") == 2
        server.stop()
        assert await processes.come(20, processes.gates[0]) == admitted
        assert await processes.come(20, processes.gates[1]) == admitted
        server.start()

        async def is_back():
            return len(events_of(events.ClusterRecovered, processes.told)) == 2

        await processes.until(is_back)
        if admitted:  # they are counted now, wherever they were admitted
            await processes.until(lambda: _count(server, processes, "ann", 6))
            await processes.end(processes.gates[0], 3)
            assert await processes.come(1, processes.gates[0]) == 0
        for gate in processes.gates:
            await gate.stop()


async def _count(server, processes, key, expected):
    counts = server.client().hgetall(f"closecodes:{{default}}:keys:{_digest(key)}").values()
    return sum(int(value.split(b":")[0]) for value in counts) == expected


async def test_server_that_lost_its_data_is_told_again(processes, server):
    processes.add()
    assert await processes.come(3) == 3
    server.command("FLUSHALL")
    await processes.until(lambda: _count(server, processes, "ann", 3))
    assert await processes.come(1) == 0


async def test_cancelled_session_leaves_no_count(processes, server):
    gate = processes.add()
    server.pause()
    try:
        with anyio.move_on_after(0.1):
            await processes.come(3)
        assert gate.active == 0
    finally:
        server.go_on()
    await processes.until(lambda: _count(server, processes, "ann", 0))
    assert await processes.come(5) == 3


async def test_key_without_a_session_takes_no_memory(processes, server):
    gate = processes.add()
    for number in range(20):
        await processes.come(1, key=f"user{number}")
    await processes.end(gate, 20)
    assert not gate._sessions
    await processes.until(lambda: _only_the_worker(server))
    await gate.stop()
    assert server.command("DBSIZE") == 0


async def _only_the_worker(server):
    return server.command("DBSIZE") == 2


async def test_no_key_is_stored_as_it_is(processes, server):
    processes.add()
    await processes.come(1, key="ann@example.org")
    assert all(b"ann" not in key for key in server.command("KEYS", "*"))


async def test_key_that_differs_from_process_to_process_is_an_error(processes):
    gate = processes.add()
    with pytest.raises(TypeError, match="not the same in all processes"):
        gate.admit(FakeSession(object()))


async def test_limit_that_is_set_later_finds_what_is_open(processes):
    first, second = processes.add(None), processes.add(2)
    assert await processes.come(3, first) == 3
    first.limit = 2

    async def is_known():
        first.sample()
        return await processes.come(1, second) == 0 or await processes.end(second)

    await processes.until(is_known)
    assert await processes.come(1, first) == 0


@pytest.mark.parametrize(
    "options", [{"limit": -1}, {"lease_duration": 0}, {"fallback": "x"}, {"name": "a b"}, {"redis_url": "x://"}]
)
def test_unusable_argument_is_refused(options):
    with pytest.raises(ValueError, match="use |begins"):
        ClusterSessionsPerKey(**{"limit": 1, "redis_url": "redis://localhost", **options})


async def test_gate_more_keys_than_in_one_call_reports_all(processes, server, monkeypatch):
    """Nor is a key reported again and again, for which there is nothing new."""
    monkeypatch.setattr(counts, "MAX_KEYS_PER_SYNC", 3)
    gate = processes.add()
    for number in range(8):
        assert await processes.come(1, key=f"user{number}") == 1
    await processes.end(gate, 8)
    await processes.until(lambda: _only_the_worker(server))
    assert gate._wait() > 0
    await processes.come(1)
    assert gate._wait() > 0
