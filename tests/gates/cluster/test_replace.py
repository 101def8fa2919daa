"""The oldest session of a key leaves for a new one, whichever process it is in, whatever is lost on the way."""

import asyncio
import contextlib
import os

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from asgi_closecodes import Guard, TryAgainLater, events
from asgi_closecodes.gates import ClusterSessionsPerKey, MaxSessionsPerKey, Shadow
from asgi_closecodes.gates.cluster import CountRequest, KeyCount, RedisStore, per_key
from asgi_closecodes.gates.cluster.per_key import _digest
from asgi_closecodes.gates.cluster.redis import client as redis_client
from tests.support.asgi import events_of
from tests.support.fakes import ConnectedClients, FakeSession, Keyed, of_key, wait_until
from tests.support.ports import free_port
from tests.support.redis import running

from .processes import is_left_behind
from .proxy import Proxy
from .topologies import nodes, sentinels

pytestmark = pytest.mark.anyio
TTL = 2.0


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Lossy(RedisStore):
    """Loses what it is told to lose."""

    lost = None
    drops_messages = False

    async def count(self, request):
        lost, self.lost = self.lost, None
        if lost == "request":
            raise TimeoutError
        reply = await super().count(request)
        if lost == "reply":
            raise TimeoutError
        return reply

    async def listen(self, worker, call):
        await super().listen(worker, lambda: self.drops_messages or call())

    def describe_error(self, error):
        return "lost" if isinstance(error, TimeoutError) else super().describe_error(error)


class Processes:
    """Gates of as many processes, and the visitors that they hold."""

    def __init__(self):
        self.gates = []
        self.told = []
        self.visitors = []
        """Those who were admitted, in the order of their arrival."""
        self.places = {}

    def add(self, url, limit=2, **options):
        options = {"lease_duration": TTL, "when_full": "replace_oldest", **options}
        gate = ClusterSessionsPerKey(limit, url, **options)
        gate.attach(self.told.append)
        self.gates.append(gate)
        return gate

    async def enter(self, gate, name="ann"):
        """A visitor, or the cause of its refusal."""
        visitor = FakeSession((name, 1))
        place = gate.admit(visitor)
        try:
            await place.__aenter__()
        except TryAgainLater as refusal:
            return refusal.cause
        self.visitors.append(visitor)
        self.places[visitor] = place
        return visitor

    async def fill(self, *gates):
        return [await self.enter(gate) for gate in gates]

    async def leave(self, visitor):
        await self.places.pop(visitor).__aexit__(None, None, None)

    def held(self, name="ann"):
        return sum(gate.active_of(_digest(name)) for gate in self.gates)

    def look(self):
        for gate in self.gates:
            gate.sample()

    async def until(self, condition, seconds=60):
        with anyio.fail_after(seconds):
            while not condition():
                self.look()
                await anyio.sleep(0.005)

    async def until_replaced(self, *visitors):
        await self.until(lambda: {one for one in self.visitors if one.ended} == {*visitors})
        assert all([refusal.cause for refusal in one.ended] == ["replaced"] for one in visitors)

    async def until_subscribed(self, server):
        """Until all that replace are called."""
        listening = sum(gate.when_full == "replace_oldest" for gate in self.gates)
        await self.until(lambda: len(server.command("PUBSUB", "CHANNELS", "closecodes:*")) == listening)

    async def until_known(self, server, db=0):
        """Until the server answers all."""
        with server.client(db=db) as client:
            await self.until(lambda: client.zcard("closecodes:{default}:keys") == len(self.gates))
        await self.until(lambda: all(gate._health.is_good for gate in self.gates))

    def of(self, kind):
        return events_of(kind, self.told)


@pytest.fixture
async def processes():
    processes = Processes()
    yield processes
    for gate in processes.gates:
        await gate.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "logged"]


def counted(server, name="ann"):
    """What the server counts of a key: what the living have said; what the dead have, goes with the next call."""
    keys = "closecodes:{default}:keys"
    with server.client() as client:
        said = client.hgetall(f"{keys}:{_digest(name)}").items()
        return sum(int(value.split(b":")[0]) for worker, value in said if client.zscore(keys, worker) is not None)


async def test_oldest_is_replaced_wherever_it_is(processes, each_server):
    gates = [processes.add(each_server.url, 3, lease_duration=600) for _ in range(3)]
    first, second, third = await processes.fill(*gates)
    bob = await processes.enter(gates[0], "bob")
    await processes.until_subscribed(each_server)
    # In another process, in another one, and in its own. With this lease_duration nothing but a message brings it.
    for oldest in ([first], [first, second], [first, second, third]):
        await processes.enter(gates[2])
        assert counted(each_server) == 3
        await processes.until_replaced(*oldest)
        assert processes.held() == 3
    said = "closecodes:{default}:keys:said"
    await processes.until(lambda: all(len(words.split()) == 1 for words in each_server.command("HVALS", said)))
    for visitor in (first, second, third):
        await processes.leave(visitor)  # its place was handed on
    await processes.until(lambda: counted(each_server) == 3 == processes.held())
    assert not bob.ended


async def test_last_of_many_that_come_at_once_are_admitted(processes, server):
    other, gate = processes.add(server.url, 3), processes.add(server.url, 3)
    old = await processes.fill(other, other, other)
    answers = await asyncio.gather(*(processes.enter(gate) for _ in range(8)))
    assert answers[:-3] == ["replaced"] * 5
    assert all(isinstance(answer, FakeSession) for answer in answers[-3:])
    await processes.until_replaced(*old)
    assert (processes.held(), counted(server)) == (3, 3)


async def test_session_not_to_be_replaced_stays(processes, server):
    gate = processes.add(server.url, 0)
    assert await processes.enter(gate) == "client"
    gate.limit = None
    assert [visitor.ended for visitor in await processes.fill(gate, gate)] == [[], []]


async def test_session_of_unknown_age_is_not_replaced(processes, server):
    refusing, replacing = processes.add(server.url, 3, when_full="refuse"), processes.add(server.url, 3)
    old = await processes.fill(refusing, refusing)
    mine = await processes.enter(replacing)
    assert await processes.enter(refusing) == "client"
    await processes.enter(replacing)
    await processes.until_replaced(mine)
    assert await processes.enter(refusing) == "client"
    refusing.when_full = "replace_oldest"  # as by Guard.update()
    await processes.until(lambda: None not in refusing._sessions.of(_digest("ann")).values())
    await processes.enter(replacing)
    await processes.until(lambda: sum(bool(visitor.ended) for visitor in processes.visitors) == 2)
    assert not any(visitor.ended for visitor in old)  # their age counts from when it was said
    for _ in range(2):
        await processes.enter(replacing)
    await processes.until(lambda: all(visitor.ended for visitor in old))


# What is lost


@pytest.mark.parametrize("loss", ["killed", "black hole", "no permission", "no message"])
async def test_who_does_not_hear_leaves_with_the_next_count(processes, server, loss, monkeypatch):
    monkeypatch.setattr(redis_client, "PING_AFTER_S", 0.2)
    async with Proxy(server.socket) as proxy:
        url = proxy.url
        if loss == "no permission":
            server.command("ACL", "SETUSER", "mute", "on", "nopass", "~*", "+@all", "resetchannels")
            url = url.replace("//", "//mute:any@")
        # A shorter lease may end on a busy machine: then nobody is replaced.
        holder = processes.add(Lossy(url), 1, lease_duration=6)
        newcomer = processes.add(server.url, 1, lease_duration=600)
        old = await processes.enter(holder)
        if loss == "no permission":
            await processes.until(lambda: processes.of(events.ClusterMisconfigured))
            [told] = processes.of(events.ClusterMisconfigured)
            assert "channels closecodes:*" in told.problem
            assert "2 s late" in told.problem
        else:
            await processes.until_subscribed(server)
        if loss == "killed":
            server.command("CLIENT", "KILL", "TYPE", "pubsub")
        proxy.drop_messages = loss == "black hole"
        holder._store.drops_messages = loss == "no message"
        await processes.enter(newcomer)
        assert counted(server) == 1  # whether it was heard or not
        await processes.until_replaced(old)
        await holder.stop()


@pytest.mark.parametrize("loss", ["killed", "black hole", "restart"])
async def test_process_that_missed_a_replacement_is_called_again(processes, loss, monkeypatch):
    monkeypatch.setattr(redis_client, "PING_AFTER_S", 0.2)
    with running() as server:
        async with Proxy(server.socket) as proxy:
            holder, newcomer = (
                processes.add(proxy.url, 1, lease_duration=600),
                processes.add(server.url, 1, lease_duration=600),
            )
            await processes.until_subscribed(server)
            if loss == "killed":
                server.command("CLIENT", "KILL", "TYPE", "pubsub")
            elif loss == "restart":
                server.stop()
                server.start()
            else:
                proxy.drop_messages = True
                gone = len(proxy.connections)
                await processes.until(lambda: len(proxy.connections) < gone)
                proxy.drop_messages = False
            await processes.until_subscribed(server)
            if loss == "restart":
                await processes.until_known(server)
            old = await processes.enter(holder)
            await processes.enter(newcomer)
            await processes.until_replaced(old)
            for gate in processes.gates:
                await gate.stop()


@pytest.mark.parametrize("loss", ["requests", "replies"])
async def test_lost_call_sheds_nobody_twice(processes, server, loss):
    async with Proxy(server.socket) as proxy:
        gate, other = processes.add(proxy.url), processes.add(server.url)
        first, second = await processes.fill(gate, other)
        setattr(proxy, f"drop_{loss}", True)
        third = await processes.enter(gate)  # it decides by itself, and has one place left
        setattr(proxy, f"drop_{loss}", False)
        await processes.until(lambda: processes.of(events.ClusterRecovered))
        if loss == "replies":  # the oldest was its own
            await processes.until_replaced(first)
            assert counted(server) == 2
        else:
            await processes.until(lambda: counted(server) == 3)
        fourth = await processes.enter(other)
        await processes.until_replaced(first, second)
        assert not third.ended + fourth.ended
        await processes.until(lambda: processes.held() == counted(server) == 2)
        await gate.stop()


async def test_late_call_changes_nothing(server):
    told = RedisStore(server.url)
    key = _digest("ann")
    await told.count(CountRequest("worker", 2, 30, 3, [KeyCount(key, 0, 0)]))
    for seq in (1, 2):
        with pytest.raises(ResponseError, match="STALE"):
            await told.count(CountRequest("worker", seq, 30, 3, [KeyCount(key, 3, 0)]))
    assert counted(server) == 0
    await told.close()


async def test_process_not_reached_is_told_again_and_counts_no_more(server):
    told = RedisStore(server.url)
    key = _digest("ann")

    async def say(worker, seq, *counts, **options):
        return await told.count(CountRequest(worker, seq, 30, 2, [KeyCount(key, *counts)], replaces=True, **options))

    [(admitted, first)] = (await say("one", 1, 0, 2)).admitted
    assert admitted == 2
    await say("other", 1, 0, 1)
    name = f"{key}:{first}"
    for seq in (2, 3):
        assert (await say("one", seq, 2, 0, (first, first + 1))).replaced == [name]
        assert counted(server) == 2
    assert (await say("one", 4, 1, 0, (first + 1,), acknowledged=[name])).replaced == []
    assert counted(server) == 2
    await told.close()


async def test_quiet_connection_is_left_alone(processes, server, monkeypatch):
    monkeypatch.setattr(redis_client, "PING_AFTER_S", 0.1)
    gate = processes.add(server.url)
    gate._store._timeout = 0.2
    await processes.until_subscribed(server)

    def connections():
        return {line.split()[0] for line in is_left_behind(server) if "sub=1" in line}

    before = connections()
    await anyio.sleep(1)
    assert connections() == before != set()


async def test_server_that_was_flushed_hears_who_is_older(processes, server):
    one, other = processes.add(server.url), processes.add(server.url)
    first, second = await processes.fill(one, other)
    server.command("FLUSHALL")
    await processes.until(lambda: counted(server) == 2)
    await processes.enter(other)
    await processes.until_replaced(first)
    await processes.enter(one)
    await processes.until_replaced(first, second)


async def test_server_whose_clock_goes_back_knows_who_is_older(processes, server):
    one, other = processes.add(server.url), processes.add(server.url)
    first, second = await processes.fill(one, other)
    ahead = 1 << 51
    for gate in processes.gates:  # as if they had come when the clock was ahead
        for session, number in [*gate._sessions.of(_digest("ann")).items()]:
            gate._sessions.put(_digest("ann"), session, number + ahead)
        gate._counts._report_all()
    await processes.until(lambda: all(gate._counts.is_settled for gate in processes.gates))
    third = await processes.enter(one)
    await processes.until_replaced(first)
    await processes.enter(one)
    await processes.until_replaced(first, second)
    assert not third.ended


async def test_process_without_the_server_replaces_its_own(processes):
    with running() as server:
        one, other = processes.add(server.url), processes.add(server.url)
        closed = processes.add(server.url, fallback="closed")
        first, second = await processes.fill(one, other)
        server.stop()
        third, fourth = await processes.fill(one, one)
        assert (len(first.ended), len(third.ended)) == (1, 0)
        assert await processes.enter(closed) == "client"
        server.start()
        await processes.until(lambda: counted(server) == 3)  # nobody leaves because it was away,
        await processes.until_replaced(first)
        await processes.until_known(server)
        await processes.enter(closed)  # but for the next who comes
        await processes.until_replaced(first, second, third)
        assert counted(server) == 2
        assert not fourth.ended
        for gate in processes.gates:
            await gate.stop()


async def test_process_that_stood_still_sheds_when_it_goes_on(processes, server):
    async with Proxy(server.socket) as proxy:
        still, other = processes.add(proxy.url, lease_duration=30), processes.add(server.url, lease_duration=30)
        first, second = await processes.fill(still, still)
        await processes.until_subscribed(server)
        proxy.delay = 0.3  # what it is told comes late, as to one that is stopped
        _third, _fourth = await processes.fill(other, other)
        assert counted(server) == 2
        assert not first.ended + second.ended
        await processes.until_replaced(first, second)
        proxy.delay = 0
        await still.stop()


async def test_dead_process_holds_nothing_and_nothing_is_kept_of_it(processes, server):
    dead, living = processes.add(server.url), processes.add(server.url)
    await processes.fill(dead, dead)
    for task in (dead._task, dead._subscription):
        task._task.cancel()
        task._end = per_key._nothing
    dead._counts._full_sync_at = 1e9
    processes.gates.remove(dead)
    await processes.enter(living)
    said = "closecodes:{default}:keys:said"
    assert len(server.command("HGET", said, dead._counts.worker).split()) == 2
    await processes.until(lambda: server.command("HKEYS", said) == [living._counts.worker.encode()])
    mine = [visitor for visitor in processes.visitors if not visitor.ended]
    await processes.enter(living)
    assert (counted(server), processes.held()) == (2, 2)
    await processes.enter(living)
    await processes.until_replaced(mine[-1])
    await dead._store.close()


# What is left behind


async def test_no_connection_and_no_task_is_left(processes, server):
    before = len(is_left_behind(server))
    for _ in range(3):
        gate = processes.add(server.url)
        await processes.enter(gate)
    await processes.until_subscribed(server)
    assert len(is_left_behind(server)) == before + 6
    for gate in processes.gates:
        await gate.stop()
    with anyio.fail_after(60):
        while len(is_left_behind(server)) > before:
            await anyio.sleep(0.01)


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_replacement_may_be_stopped_anywhere(processes, server, turns):
    before = len(is_left_behind(server))
    gate = processes.add(server.url)
    gate.start()
    for _ in range(turns):
        await asyncio.sleep(0)
    await gate.stop()
    assert not server.command("EXISTS", "closecodes:{default}:keys", "closecodes:{default}:keys:said")
    with anyio.fail_after(60):
        while len(is_left_behind(server)) > before:
            await anyio.sleep(0.01)
    assert isinstance(await processes.enter(gate), FakeSession)


async def test_limit_that_is_taken_away_ends_it(processes, server):
    gate = processes.add(server.url)
    await processes.enter(gate)
    await processes.until_subscribed(server)
    gate.limit = None
    with anyio.fail_after(60):
        while server.command("PUBSUB", "CHANNELS") or server.command("ZCARD", "closecodes:{default}:keys"):
            await anyio.sleep(0.01)


async def test_forked_child_is_another_worker(processes, server):
    gate = processes.add(server.url, 1, lease_duration=600)
    old = await processes.enter(gate)
    await processes.until_subscribed(server)
    ours = gate._counts.worker
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writable, f"{gate._counts.worker != ours} {gate.active} {gate._store._listening}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(readable, 100) == b"True 0 None"
    os.close(readable)
    os.close(writable)
    await processes.enter(processes.add(server.url, 1, lease_duration=600))
    await processes.until_replaced(old)  # it is still called


async def test_by_sentinels(processes, binary, tmp_path):
    with running(binary, port=free_port()) as primary, sentinels(binary, tmp_path, primary.port, count=1) as [port]:
        url = f"redis+sentinel://127.0.0.1:{port}/mymaster/1"
        one, other = processes.add(url, 1, lease_duration=600), processes.add(url, 1, lease_duration=600)
        await processes.until_known(primary, db=1)
        await processes.until_subscribed(primary)
        old = await processes.enter(one)
        await processes.enter(other)
        await processes.until_replaced(old)


async def test_replacement_on_a_redis_cluster_is_passed_on_by_a_node(processes, binary):
    """On a cluster, one of the nodes that are named passes it on."""
    with nodes(binary) as (owner, [other, third]):
        away = free_port()
        url = f"redis+cluster://127.0.0.1:{away},127.0.0.1:{other.port},127.0.0.1:{third.port}"
        gates = [processes.add(url, 1, lease_duration=600) for _ in range(3)]
        await processes.until_known(owner)

        def channels():
            return sum(len(server.command("PUBSUB", "CHANNELS", "closecodes:*")) for server in (other, third))

        await processes.until(lambda: channels() == len(gates))
        visitors = [await processes.enter(gate) for gate in gates * 2]
        await processes.until_replaced(*visitors[:-1])


# A key that the handler sets


@contextlib.asynccontextmanager
async def guarded(gate, handler=None, **options):
    """Peers that stay behind ``gate``."""
    guard = Guard(gate=gate, **options)
    try:
        async with ConnectedClients(guard, handler or Keyed()) as stay:
            yield stay
    finally:
        for working in guard._working_gates:
            await working.stop()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_session_counts_under_the_key_that_its_handler_sets(server, when):
    gate = ClusterSessionsPerKey(1, server.url, key=of_key)
    alice, bob = _digest("alice"), _digest("bob")
    async with guarded(gate, Keyed(when)) as stay:
        await stay.come(1, path="/alice")
        await stay.come(1, path="/bob")
        await wait_until(lambda: gate.active_of(alice) == gate.active_of(bob) == gate.active / 2 == 1)
        await stay.come(1, path="/alice")
        await wait_until(lambda: stay.codes() == [None, None, 1013])
        assert stay.peers[2].closed[1].endswith("cause=client")
        await wait_until(lambda: counted(server, "alice") == 1 == gate.active_of(alice))
    assert (gate.active, len(gate._sessions), gate._refused) == (0, 0, set())


async def test_rekey_replaces_the_oldest_session_of_the_key_elsewhere(server):
    gates = [
        ClusterSessionsPerKey(1, server.url, key=of_key, when_full="replace_oldest", lease_duration=600)
        for _ in range(2)
    ]
    async with guarded(gates[0]) as first, guarded(gates[1]) as second:
        await first.come(1, path="/alice")
        await wait_until(lambda: counted(server, "alice") == 1 and len(server.command("PUBSUB", "CHANNELS")) == 1)
        await second.come(1, path="/alice")
        await wait_until(lambda: first.codes() == [1013])
        assert first.peers[0].closed[1].endswith("cause=replaced")
        await wait_until(lambda: gates[1].active_of(_digest("alice")) == 1)
        assert second.codes() == [None]
    assert not any(gate._sessions for gate in gates)


async def test_key_that_is_set_back_keeps_the_permit(processes, server):
    visitor = FakeSession()
    visitor.key = "alice"
    gate = processes.add(server.url, 1, key=of_key, when_full="refuse")
    place = gate.admit(visitor)
    await place.__aenter__()
    await gate.admit(bob := FakeSession(key="bob")).__aenter__()
    for wait in (0, 0.3):  # before the answer, and when it was refused
        visitor.key = "bob"
        place.rekey()
        await anyio.sleep(wait)
        assert gate.active_of(_digest("alice")) == 1
        visitor.key = "alice"
        place.rekey()
        assert [*gate.expired()] == []
    assert gate.active == 2
    visitor.key = "bob"
    place.rekey()
    await processes.until(lambda: [*gate.expired()] == [visitor])
    await place.__aexit__(None, None, None)
    assert [*gate.expired()] == []
    assert list(gate._sessions) == [_digest("bob")]
    assert not bob.ended
    await processes.until(lambda: counted(server, "alice") == 0)


async def test_rekey_then_leaving_early_holds_neither_key(processes, server):
    """Who leaves before the answer has no permit under either key."""
    for turns in range(12):
        visitor = FakeSession(key="alice")
        gate = processes.add(server.url, 1, key=of_key)
        place = gate.admit(visitor)
        await place.__aenter__()
        visitor.key = "bob"
        place.rekey()
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        await place.__aexit__(None, None, None)
        await processes.until(lambda: counted(server, "bob") == counted(server, "alice") == 0)
        assert (gate.active, len(gate._sessions)) == (0, 0)


async def test_rekey_without_the_server_is_refused_at_once(server):
    gate = ClusterSessionsPerKey(1, server.url, key=of_key, fallback="closed")
    seen = []
    with running() as away:
        gate._store = RedisStore(away.url)
        async with guarded(gate, observers=[seen.append]) as stay:
            away.stop()
            await stay.come(1, path="/nobody")
            await wait_until(lambda: not gate._health.is_good)
            await stay.come(1, path="/alice")
            await wait_until(lambda: stay.codes()[1] == 1013)
    assert [refusal.cause for refusal in events_of(events.SessionRefused, seen)][-1:] == ["client"]


async def test_in_the_shadow_nobody_leaves(server):
    gate = ClusterSessionsPerKey(1, server.url, key=of_key, when_full="replace_oldest")
    async with guarded(Shadow(gate)) as stay:
        await stay.come(2, path="/alice")
        await wait_until(lambda: len(gate._refused) == 1)
        await anyio.sleep(0.3)
        assert stay.codes() == [None, None]
        assert gate.when_full == "replace_oldest"
    assert (len(gate._sessions), gate._refused) == (0, set())


async def test_sessions_of_a_process_over_a_lowered_limit_are_shed(server):
    gate = ClusterSessionsPerKey(3, server.url, key=lambda session: session.scope["path"])
    async with guarded(gate) as stay:
        await stay.come(3, path="/alice")
        await wait_until(lambda: gate.active == 3)
        gate.limit = 1
        await wait_until(lambda: stay.codes() == [None, 1013, 1013])


# Any order of anything

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(0, 2), st.integers(1, 4)),
        st.tuples(st.just("leave"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 2), st.integers(0, 8)),
    ),
    max_size=15,
)
FAULTS = st.lists(
    st.tuples(st.sampled_from(["request", "reply", "message", "flush", "restart"]), st.integers(0, 2)), max_size=4
)


async def settled(processes, server):
    """Until all that is known is said and heard."""
    await processes.until(
        lambda: (
            all(gate._health.is_good and gate._counts.is_settled for gate in processes.gates)
            and counted(server) == processes.held()
        )
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(limit=st.integers(0, 3), steps=STEPS)
def test_all_processes_together_do_what_one_does(server, limit, steps):
    async def main():
        server.command("FLUSHALL")
        processes = Processes()
        one, ours = MaxSessionsPerKey(limit, when_full="replace_oldest"), {}

        async def enter_one(visitor):
            """The same in one process, where who was replaced leaves at once."""
            ours[visitor] = FakeSession(("ann", 1))
            await one.admit(ours[visitor]).__aenter__()
            for replaced in [its for its in ours.values() if its.ended]:
                one.release("ann", replaced)

        for _ in range(3):
            processes.add(server.url, limit, lease_duration=600)
        try:
            await processes.fill(*(processes.gates if limit else ()))
            for visitor in processes.visitors:
                await enter_one(visitor)
            await settled(processes, server)
            for step, number, count in steps:
                if step == "come":
                    for _ in range(count if limit else 0):
                        visitor = await processes.enter(processes.gates[number])
                        for replaced in [one for one in processes.places if one.ended]:
                            await processes.leave(replaced)
                        await enter_one(visitor)
                elif step == "leave" and processes.visitors:
                    visitor = processes.visitors[number % len(processes.visitors)]
                    if visitor in processes.places:
                        await processes.leave(visitor)
                        one.release("ann", ours[visitor])
                await settled(processes, server)
                assert {visitor for visitor in ours if visitor.ended} == {
                    visitor for visitor, its in ours.items() if its.ended
                }
                assert processes.held() == one.active_of("ann") <= limit
        finally:
            for gate in processes.gates:
                await gate.stop()

    asyncio.run(main())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(limit=st.integers(1, 3), steps=STEPS, faults=FAULTS)
def test_whatever_is_lost_no_permit_is_and_nobody_is_shed_twice(server, limit, steps, faults):
    async def main():
        server.command("FLUSHALL")
        processes = Processes()
        for _ in range(3):
            processes.add(Lossy(server.url), limit, lease_duration=2)
        faults_left = [*faults]
        try:
            for step, number, count in steps:
                if faults_left:
                    fault, where = faults_left.pop()
                    store = processes.gates[where]._store
                    if fault == "flush":
                        server.command("FLUSHALL")
                    elif fault == "message":
                        store.drops_messages = True
                    elif fault == "restart":
                        await processes.gates[where].stop()
                        processes.gates[where].start()
                    else:
                        store.lost = fault
                if step == "come":
                    await asyncio.gather(*(processes.enter(processes.gates[number]) for _ in range(count)))
                elif step == "cancel":
                    coming = asyncio.create_task(processes.enter(processes.gates[number]))
                    for _ in range(count):
                        await asyncio.sleep(0)
                    coming.cancel()
                    await asyncio.wait([coming])
                elif visitors := [*processes.places]:
                    await processes.leave(visitors[number % len(visitors)])
            for gate in processes.gates:
                gate._store.lost = None
            await settled(processes, server)
            for replaced in [one for one in processes.places if one.ended]:  # else the newcomer is refused
                await processes.leave(replaced)
            await processes.enter(processes.gates[0])
            await settled(processes, server)
            assert processes.held() <= limit
            held = {visitor for gate in processes.gates for visitor in gate._sessions.of(_digest("ann"))}
            for visitor in processes.visitors:
                assert len(visitor.ended) == (visitor in processes.places and visitor not in held) or (
                    visitor not in processes.places and len(visitor.ended) <= 1
                )
            for visitor in [*processes.places]:
                await processes.leave(visitor)
            await settled(processes, server)
            assert not any(gate._sessions for gate in processes.gates)
        finally:
            for gate in processes.gates:
                await gate.stop()

    asyncio.run(main())
