"""Sentinels that fail over, and a Redis Cluster whose slots move: real ones, as many processes as it takes."""

import contextlib
import time
from urllib.parse import quote

import anyio
import pytest
import redis

from asgi_closecodes import events
from asgi_closecodes.gates.cluster.redis.client import keys_of
from tests.support.ports import free_port
from tests.support.redis import binaries, running, system_servers

from .access import ACL, ACL_OF_A_CLUSTER, user_with
from .at_once import at_once
from .authority import Authority
from .processes import TTL
from .topologies import SLOT, nodes, sentinels

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def until(condition, seconds=60):
    with anyio.fail_after(seconds):
        while True:
            with contextlib.suppress(redis.RedisError):
                if condition():
                    return
            await anyio.sleep(0.05)


@at_once(binary=binaries())
async def test_stale_replica_promoted_admits_nobody_over_the_limit(processes, binary, tmp_path):
    """A replica with an older state that takes over lets in nobody too many."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(binary, port=free_port(), repl_diskless_sync_delay=0)) for _ in range(3)]
        primary, *replicas = servers
        for replica in replicas:
            replica.command("REPLICAOF", "127.0.0.1", primary.port)
        await until(lambda: primary.command("INFO", "replication")["connected_slaves"] == 2)
        ports = stack.enter_context(sentinels(binary, tmp_path, primary.port))
        asked = [redis.Redis(port=port) for port in ports]
        stack.callback(lambda: [client.close() for client in asked])
        await until(lambda: all(b"OK 3" in client.execute_command("SENTINEL CKQUORUM mymaster") for client in asked))
        await until(lambda: all(len(client.sentinel_slaves("mymaster")) == 2 for client in asked))

        url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in ports)}/mymaster"
        for _ in range(3):
            processes.add(30, url, fallback="closed")
        await processes.come(1)
        with contextlib.closing(replicas[0].client()) as client:
            await until(lambda: all(client.exists(key) for key in keys_of("default")))
        # From here on the replicas know of nothing that the primary hears.
        primary.command("ACL", "SETUSER", "default", "-psync", "-sync", "-replconf")
        primary.command("CLIENT", "KILL", "TYPE", "replica")
        await processes.fill(30)
        processes.told.clear()
        primary.stop()
        start = time.monotonic()
        while len(processes.of(events.ClusterRecovered)) < 3:
            processes.look()
            assert await processes.come(3) == 0
            assert time.monotonic() - start < 30
            await anyio.sleep(0.05)
        start = time.monotonic()
        while time.monotonic() - start < TTL:
            processes.look()
            assert await processes.come(3) == 0
            await anyio.sleep(0.05)
        assert processes.open == 30
        assert processes.of(events.ClusterRelearning)
        await processes.end(processes.gates[0], 5)
        await processes.fill(30, processes.gates[1])


@at_once(binary=system_servers())
async def test_sentinels_with_tls_and_passwords_of_their_own(processes, binary, tmp_path):
    ours = Authority(tmp_path / "ours")
    certificate, key = ours.files_for("127.0.0.1")
    tls = {
        "tls_cert_file": certificate,
        "tls_key_file": key,
        "tls_ca_cert_file": ours.certificate,
        "tls_auth_clients": "no",
        "tls_replication": "yes",
    }
    password = "p@ss/w?rd"
    with running(binary, tls_port=free_port(), requirepass=password, **tls) as primary:
        lines = [f"{name.replace('_', '-')} {value}" for name, value in tls.items()]
        lines += ["port 0", f"sentinel auth-pass mymaster {password}", "requirepass s3cret"]
        with sentinels(binary, tmp_path, primary.tls_port, *lines, count=1, port="tls-port") as [port]:
            url = f"rediss+sentinel://:{quote(password, safe='')}@127.0.0.1:{port}/mymaster/2"
            url += f"?ssl_ca_certs={ours.certificate}"
            gate = processes.add(10, f"{url}&sentinel_password=s3cret")
            await processes.until(lambda: gate.start() or gate.lease.reply is not None)
            await processes.fill(10, gate)
            assert primary.command("INFO", "keyspace")["db2"]["keys"] == 3

            processes.told.clear()
            processes.add(10, url)
            await processes.until(lambda: processes.of(events.ClusterUnreachable))
            assert "sentinel_password" in processes.of(events.ClusterUnreachable)[0].problem
            assert not any(secret in repr(processes.told) for secret in (password, "s3cret"))


@at_once(binary=binaries())
async def test_sentinels_that_know_no_such_service(processes, binary, tmp_path):
    with running(binary, port=free_port()) as primary, sentinels(binary, tmp_path, primary.port, count=1) as [port]:
        processes.add(10, f"redis+sentinel://127.0.0.1:{port}/other")
        await processes.until(lambda: processes.of(events.ClusterUnreachable))
        assert "know no primary of that service" in processes.of(events.ClusterUnreachable)[-1].problem


@at_once(binary=binaries())
async def test_slot_that_moves_while_a_cluster_is_full(processes, binary):
    with nodes(binary) as (owner, [other, third]):
        # One of the nodes that are named may be away.
        url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{third.port}"
        for _ in range(3):
            processes.add(30, url, lease_duration=10, fallback="closed")
        await processes.fill(30)
        processes.told.clear()

        async def nobody_comes_until(condition):
            with anyio.fail_after(60):
                while not condition():
                    processes.look()
                    assert await processes.come(3) == 0
                    await anyio.sleep(0.05)

        here, there = (server.command("CLUSTER", "MYID") for server in (owner, other))
        other.command("CLUSTER", "SETSLOT", SLOT, "IMPORTING", here)
        owner.command("CLUSTER", "SETSLOT", SLOT, "MIGRATING", there)
        first, *rest = keys_of("default")
        owner.command("MIGRATE", "127.0.0.1", other.port, "", 0, 5000, "KEYS", first)
        await nobody_comes_until(lambda: processes.of(events.ClusterUnreachable))  # its keys are in two places
        assert "is moving the limit" in processes.of(events.ClusterUnreachable)[0].problem
        owner.command("MIGRATE", "127.0.0.1", other.port, "", 0, 5000, "KEYS", *rest)
        await nobody_comes_until(lambda: all(gate.lease.time_left > 9 for gate in processes.gates))  # by ASK
        for server in (other, owner, third):
            server.command("CLUSTER", "SETSLOT", SLOT, "NODE", there)
        await anyio.sleep(1)
        await nobody_comes_until(lambda: all(gate.lease.time_left > 9 for gate in processes.gates))
        assert other.command("ZCARD", keys_of("default")[2]) == 3
        assert not processes.of(events.ClusterRelearning)  # nothing was lost
        assert processes.open == 30
        await processes.end(processes.gates[0], 5)
        await processes.fill(30, processes.gates[1])
        assert await processes.come(5) == 0


@at_once(binary=binaries())
async def test_only_the_node_that_has_the_limit_matters(processes, binary):
    with nodes(binary) as (owner, [other, third]):
        processes.add(10, f"redis+cluster://127.0.0.1:{third.port},127.0.0.1:{owner.port}")
        await processes.fill(5)
        other.stop()
        start = time.monotonic()
        while time.monotonic() - start < 2 * TTL:
            processes.look()
            await anyio.sleep(0.05)
        assert not processes.of(events.ClusterUnreachable)
        await processes.fill(10)
        owner.stop()
        await processes.until(lambda: processes.of(events.ClusterFallback))
        assert processes.open == 10


@at_once(binary=binaries())
async def test_node_that_is_asked_as_if_it_were_alone(processes, binary):
    with nodes(binary) as (_, [other, _]):
        processes.add(10, f"redis://127.0.0.1:{other.port}")
        await processes.until(lambda: processes.of(events.ClusterUnreachable))
        assert "use redis+cluster://" in processes.of(events.ClusterUnreachable)[0].problem


@at_once(binary=binaries())
async def test_acl_of_the_readme_for_a_cluster_is_enough(processes, binary):
    with nodes(binary) as servers:
        everyone = [servers[0], *servers[1]]
        for server in everyone:
            user_with(server, f"{ACL} +command")
        url = f"redis+cluster://ann:s3cret@127.0.0.1:{everyone[2].port}"
        gate = processes.add(10, url)
        await processes.until(lambda: processes.of(events.ClusterUnreachable))
        assert "may not run" in processes.of(events.ClusterUnreachable)[0].problem
        for server in everyone:
            user_with(server, f"{ACL} {ACL_OF_A_CLUSTER}")
        await processes.until(lambda: processes.of(events.ClusterRecovered))
        await processes.fill(10, gate)


@at_once(binary=binaries())
async def test_server_that_is_asked_as_if_it_were_a_cluster(processes, binary):
    with running(binary, port=free_port()) as alone:
        processes.add(10, f"redis+cluster://127.0.0.1:{alone.port}")
        await processes.until(lambda: processes.of(events.ClusterUnreachable))
        assert "it is no Redis Cluster" in processes.of(events.ClusterUnreachable)[0].problem


@at_once(binary=binaries())
async def test_cluster_without_our_slot(processes, binary):
    with running(binary, port=free_port(), cluster_enabled="yes", cluster_require_full_coverage="no") as node:
        node.command("CLUSTER", "ADDSLOTS", *(number for number in range(16384) if number != SLOT))
        processes.add(10, f"redis+cluster://127.0.0.1:{node.port}")
        await processes.until(lambda: processes.of(events.ClusterUnreachable))
        assert "its cluster is down" in processes.of(events.ClusterUnreachable)[0].problem
