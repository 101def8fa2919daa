"""``asgi-closecodes cluster status`` on a real server."""

import asyncio
import json

import pytest

from asgi_closecodes.gates.cluster import RedisStore
from asgi_closecodes.gates.cluster.lease import Lease

from .processes import status


@pytest.fixture
def workers(server):
    async def sync():
        store = RedisStore(server.url, "chat")
        leases = [Lease(100) for _ in range(3)]
        for number, lease in enumerate(leases):
            lease.used = number
            lease.answer(await store.sync(lease.ask()))
        await store.close()
        return leases

    return asyncio.run(sync())


def test_cluster_command_shows_the_workers_and_their_sums(server, workers):
    result = status("--redis-url", server.url, "--name", "chat")
    assert result.exit_code == 0
    assert "3 workers, limit 100" in result.output
    for lease in workers:
        assert lease.worker in result.output


def test_cluster_command_tells_machines(server, workers):
    state = json.loads(status("--redis-url", server.url, "--name", "chat", "--json").output)
    assert (state["limit"], state["used"], len(state["workers"])) == (100, 3, 3)
    assert state["alloc"] == sum(worker["grant"] for worker in state["workers"])
    assert {worker["id"] for worker in state["workers"]} == {lease.worker for lease in workers}


def test_cluster_command_reads_the_settings_names(server, workers, monkeypatch):
    monkeypatch.setenv("CLOSECODES_REDIS_URL", server.url)
    monkeypatch.setenv("CLOSECODES_CLUSTER_NAME", "chat")
    assert "limit 100" in status().output


def test_limit_that_nobody_has(server):
    assert "no worker has permits of cluster limit other" in status("--redis-url", server.url, "--name", "other").output


@pytest.mark.parametrize(
    ("url", "problem"),
    [("http://:s3cret@x", "begins with redis://"), ("unix://:s3cret@/none.sock", "it cannot be reached")],
)
def test_what_cannot_be_asked_is_explained_without_the_password(url, problem):
    result = status("--redis-url", url)
    assert result.exit_code != 0
    assert problem in result.output
    assert "s3cret" not in result.output
