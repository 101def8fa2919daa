"""What every server that there is has to do: the wheel's Redis, the system's, Valkey."""

from pathlib import Path

import anyio
import pytest

from asgi_closecodes import TryAgainLater, events
from asgi_closecodes.gates import ClusterSessionsPerKey
from asgi_closecodes.gates.cluster import RedisStore
from asgi_closecodes.gates.cluster.redis import client as redis_client
from asgi_closecodes.gates.cluster.redis.client import keys_of
from tests.support.fakes import FakeSession
from tests.support.redis import binaries, running, system_servers

from .access import ACL, ACL_OF_A_CLUSTER, user_with
from .at_once import at_once

pytestmark = pytest.mark.anyio

ACL_TO_REPLACE = "resetchannels &closecodes:* +publish +subscribe +ping"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@at_once(binary=binaries())
async def test_one_limit_and_one_of_a_key_hold(processes, server):
    for _ in range(4):
        processes.add(40, server.url)
    await processes.fill(40)
    assert await processes.come(20) == 0
    first, second = processes.gates[:2]
    await processes.end(first, first.usage)
    await first.stop()
    processes.gates.remove(first)
    await processes.fill(40, second)
    assert not processes.of(events.ClusterSyncFailed)

    keyed = [ClusterSessionsPerKey(3, server.url, key=lambda session: session.scope["client"]) for _ in range(2)]
    admitted = 0
    for gate in keyed * 3:
        place = gate.admit(FakeSession("ann"))
        try:
            await place.__aenter__()
        except TryAgainLater:
            continue
        admitted += 1
    for gate in keyed:
        await gate.stop()
    assert admitted == 3


def test_readme_has_them_all():
    readme = (Path(__file__).parents[3] / "asgi_closecodes/gates/cluster/README.md").read_text(encoding="utf-8")
    assert f" {ACL}\n" in readme
    assert f"`{ACL_OF_A_CLUSTER}`" in readme
    assert f"`{ACL_TO_REPLACE}`" in readme


@at_once(binary=binaries())
async def test_acl_of_the_readme_is_enough(processes, binary):
    with running(binary) as server:
        url = user_with(server, ACL)
        for _ in range(2):
            processes.add(10, url)
        await processes.fill(10)
        server.command("SCRIPT", "FLUSH")
        await processes.end(processes.gates[0], 5)
        await processes.fill(10, processes.gates[1])
        keyed = ClusterSessionsPerKey(3, url, key=lambda session: "ann")
        keyed.attach(processes.told.append)
        async with keyed.admit(FakeSession()):
            await keyed.stop()
        assert not processes.of(events.ClusterSyncFailed)
        store = RedisStore(url)
        state, problem = await store.state(), await store.check_config()
        await store.close()
        assert (state.limit, len(state.workers), problem) == (10, 2, None)
        with server.client() as client:
            refused = {entry["object"] for entry in client.acl_log()}
        assert refused <= {"client", "client|setinfo"}  # redis-py's own, which it can do without


async def test_acl_to_replace_is_enough_for_the_server(processes, binary, monkeypatch):
    monkeypatch.setattr(redis_client, "PING_AFTER_S", 0.05)  # so that there are PINGs
    with running(binary) as server:
        url = user_with(server, f"{ACL} {ACL_TO_REPLACE}")
        gates = [
            ClusterSessionsPerKey(1, url, key=lambda session: "ann", when_full="replace_oldest", lease_duration=600)
            for _ in range(2)
        ]
        for gate in gates:
            gate.attach(processes.told.append)
            gate.start()

        def listening():
            return len(server.command("PUBSUB", "CHANNELS", "closecodes:*"))

        await processes.until(lambda: listening() == 2)
        old, new = FakeSession(), FakeSession()
        async with gates[0].admit(old), gates[1].admit(new):
            await processes.until(lambda: old.ended)
            await anyio.sleep(0.2)
            assert listening() == 2
        for gate in gates:
            await gate.stop()
        assert not processes.of(events.ClusterSyncFailed)
        assert not processes.of(events.ClusterUnreachable)
        with server.client() as client:
            refused = {entry["object"] for entry in client.acl_log()}
        assert refused <= {"client", "client|setinfo"}


@pytest.mark.parametrize("needed", ["~closecodes:*", "+@hash", "+@sortedset", "+del", "+time", "+eval", "+evalsha"])
async def test_and_it_needs_all_of_that(processes, server, needed):
    url = user_with(server, " ".join(word for word in ACL.split() if word != needed))
    server.command("SCRIPT", "FLUSH")
    processes.add(10, url)
    await processes.until(lambda: processes.of(events.ClusterUnreachable))
    assert "may not run" in processes.of(events.ClusterUnreachable)[0].problem
    assert "s3cret" not in repr(processes.told)
    server.command("ACL", "DELUSER", "ann")


@at_once(binary=binaries())
async def test_command_that_a_user_may_not_run_is_named(processes, binary):
    with running(binary) as server:
        url = user_with(server, f"{ACL} resetchannels &closecodes:*")
        processes.add(10, f"{url}?db=1")
        await processes.until(lambda: processes.of(events.ClusterUnreachable))
        assert "may not run SELECT" in processes.of(events.ClusterUnreachable)[0].problem
        gate = ClusterSessionsPerKey(1, url, key=lambda session: "ann", when_full="replace_oldest")
        gate.attach(processes.told.append)
        gate.start()
        await processes.until(lambda: processes.of(events.ClusterMisconfigured))
        await gate.stop()
        assert "may not run SUBSCRIBE" in processes.of(events.ClusterMisconfigured)[0].problem


@at_once(binary=binaries())
async def test_password_is_explained_and_never_told(processes, binary):
    with running(binary, requirepass="right") as server:
        for url in (server.url, f"unix://:s3cret@{server.socket}"):
            processes.add(10, url)
        await processes.until(lambda: len(processes.of(events.ClusterUnreachable)) == 2)
        problems = {event.problem for event in processes.of(events.ClusterUnreachable)}
        assert any("it wants a password" in problem for problem in problems)
        assert any("does not accept the user or the password" in problem for problem in problems)
        assert "s3cret" not in repr(processes.told)
        good = processes.add(10, f"unix://:right@{server.socket}")
        await processes.fill(10, good)


@at_once(binary=binaries())
async def test_refused_write_is_explained(processes, binary):
    with running(binary) as server:
        processes.add(10, server.url)
        server.command("CONFIG", "SET", "maxmemory", "1")
        await processes.until(lambda: processes.of(events.ClusterUnreachable))
        assert "its memory is full" in processes.of(events.ClusterUnreachable)[0].problem
        server.command("CONFIG", "SET", "maxmemory", "0")
        await processes.until(lambda: processes.of(events.ClusterRecovered))
        server.command("REPLICAOF", "127.0.0.1", "1")
        await processes.until(lambda: len(processes.of(events.ClusterUnreachable)) == 2)
        assert "it is a replica" in processes.of(events.ClusterUnreachable)[1].problem
        server.command("REPLICAOF", "NO", "ONE")
        await processes.until(lambda: len(processes.of(events.ClusterRecovered)) == 2)
        await processes.fill(10)


@at_once(binary=system_servers())
async def test_server_that_loads_its_data_is_waited_for(processes, binary):
    with running(binary) as server:
        with server.client() as client:
            client.mset({f"filler:{number}": "x" * 100 for number in range(3000)})
        server.command("SAVE")
        server.stop()
        server.start(key_load_delay=1000, loading_process_events_interval_bytes=1024)  # a millisecond a key
        processes.add(10, server.url)
        await processes.until(lambda: processes.of(events.ClusterUnreachable))
        assert processes.of(events.ClusterUnreachable)[0].problem == "it is loading its data"
        await processes.until(lambda: processes.of(events.ClusterRecovered))
        await processes.fill(10)


@at_once(binary=binaries())
async def test_leases_that_a_server_evicts_are_learned_anew(processes, binary):
    with running(binary) as server:
        for _ in range(3):
            processes.add(30, server.url)
        await processes.fill(30)
        assert not processes.of(events.ClusterMisconfigured)
        used = server.command("INFO", "memory")["used_memory"]
        server.command("CONFIG", "SET", "maxmemory", used + 2_000_000)
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        with server.client() as client, anyio.fail_after(60):
            number = 0
            while not processes.of(events.ClusterRelearning):
                while client.exists(*keys_of("default")) == 3:
                    client.set(f"filler:{number % 1000}", "x" * 20_000)
                    number += 1
                processes.look()
                assert await processes.come(3) == 0
                await anyio.sleep(0.01)
        assert processes.open == 30
        server.command("CONFIG", "SET", "maxmemory", "0")
        await processes.end(processes.gates[0], 5)
        await processes.fill(30, processes.gates[1])
        late = processes.add(30, server.url)
        server.command("CONFIG", "SET", "maxmemory", "100mb")
        await processes.until(lambda: processes.of(events.ClusterMisconfigured))
        assert "allkeys-random" in processes.of(events.ClusterMisconfigured)[0].problem
        assert late.lease.reply is not None
