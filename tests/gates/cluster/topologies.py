"""Sentinels and Redis Clusters, started for a test."""

from __future__ import annotations

import contextlib
import subprocess
import time

import redis

from tests.support.ports import free_port
from tests.support.redis import running

SLOT = redis.crc.key_slot(b"default")


@contextlib.contextmanager
def sentinels(binary, folder, primary, *lines, count=3, port="port"):
    """Sentinels that watch ``primary``; gives their ports."""
    with contextlib.ExitStack() as stack:
        ports = [free_port() for _ in range(count)]
        for number in ports:
            configuration = folder / f"{number}.conf"
            text = [
                f"dir {folder}",
                f"{port} {number}",
                f"sentinel monitor mymaster 127.0.0.1 {primary} {count // 2 + 1}",
                "sentinel down-after-milliseconds mymaster 500",
                "sentinel failover-timeout mymaster 3000",
                *lines,
            ]
            configuration.write_text("\n".join(text))
            process = subprocess.Popen([binary, configuration, "--sentinel"], stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield ports


@contextlib.contextmanager
def nodes(binary):
    """Three nodes of a cluster with a third of the slots each: the one that has ours, and the others."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                running(
                    binary,
                    port=free_port(),
                    cluster_enabled="yes",
                    cluster_node_timeout=1000,
                    cluster_require_full_coverage="no",
                )
            )
            for _ in range(3)
        ]
        for number, server in enumerate(servers):
            server.command("CLUSTER", "ADDSLOTS", *_slots(number))
            server.command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        deadline = time.monotonic() + 30
        while any(
            wanted not in server.command("CLUSTER", "INFO")
            for server in servers
            for wanted in (b"cluster_state:ok", b"cluster_slots_ok:16384")
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        [owner] = [server for number, server in enumerate(servers) if SLOT in _slots(number)]
        yield owner, [server for server in servers if server is not owner]


def _slots(number):
    return range(number * 16384 // 3, (number + 1) * 16384 // 3)
