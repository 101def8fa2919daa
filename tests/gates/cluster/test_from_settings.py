"""The cluster limits that settings describe, and what a guard does with them."""

import logging
import subprocess
import sys

import anyio
import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, SettingsError
from asgi_closecodes.gates import ClusterSessions, ClusterSessionsPerKey, Shadow
from asgi_closecodes.guard.ticker import TICK_S
from tests.support.asgi import Handler, Peer
from tests.support.redis import running

from .proxy import Proxy


def cluster_gates(guard):
    return [gate for gate in guard._working_gates if isinstance(gate, (ClusterSessions, ClusterSessionsPerKey))]


def test_cluster_gate_without_redis_is_not_made():
    assert cluster_gates(Guard(Settings())) == []


def test_cluster_is_asked_last():
    settings = Settings(
        redis_url="redis://localhost",
        cluster_max_sessions=100,
        cluster_max_sessions_per_client=5,
        when_client_full="replace_oldest",
        handshakes_per_second=5,
        cluster_lease_duration=10,
        cluster_fallback="closed",
    )
    names = [gate.name for gate in Guard(settings).gate.gates]
    assert names == ["handshakes_per_second", "cluster_max_sessions_per_client", "cluster_max_sessions"]
    per_client, sessions = cluster_gates(Guard(settings))
    assert (sessions.limit, sessions.lease_duration, sessions.fallback) == (100, 10, "closed")
    assert (per_client.limit, per_client.lease_duration, per_client.fallback) == (5, 10, "closed")
    assert per_client.when_full == "replace_oldest"


@pytest.mark.parametrize("name", ["cluster_max_sessions", "cluster_max_sessions_per_client"])
def test_limit_without_a_place_to_meet_is_refused(name):
    with pytest.raises(SettingsError, match="needs redis_url"):
        Settings(**{name: 5})


def test_update_of_a_cluster_changes_limits_but_not_the_url():
    """A limit may change while it runs; the store where processes meet may not."""
    guard = Guard(Settings(redis_url="redis://localhost", cluster_max_sessions=100))
    [gate] = cluster_gates(guard)
    guard.update(
        cluster_max_sessions=50, cluster_fallback="open", cluster_lease_duration=5, when_client_full="replace_oldest"
    )
    guard.update(cluster_max_sessions_per_client=3)
    per_client, sessions = cluster_gates(guard)
    assert per_client.when_full == "replace_oldest"
    assert sessions is gate
    assert (gate.limit, gate.fallback, gate.lease_duration) == (50, "open", 5)
    guard.update(cluster_max_sessions=None)
    assert gate not in guard.gate.gates
    with pytest.raises(SettingsError, match="cannot be changed while the application runs"):
        guard.update(redis_url="redis://elsewhere")
    with pytest.raises(SettingsError, match="cluster_name cannot be changed"):
        guard.update(cluster_name="other", cluster_max_sessions=7)
    assert cluster_gates(guard) == [per_client]


def test_password_is_told_nowhere(caplog):
    caplog.set_level(logging.DEBUG)
    settings = Settings(redis_url="redis://:s3cret@localhost", cluster_max_sessions=100)
    guard = Guard(settings)
    guard.update(cluster_max_sessions=50)
    with pytest.raises(SettingsError) as info:
        Settings(redis_url="http://:s3cret@localhost")
    for text in (repr(settings), str(settings), str(guard.snapshot()), caplog.text, str(info.value)):
        assert "s3cret" not in text


def test_in_the_shadow_it_only_looks():
    guard = Guard(Settings(redis_url="redis://localhost", cluster_max_sessions=5, shadow="cluster_max_sessions"))
    assert isinstance(guard.gate.gates[-1], Shadow)
    assert isinstance(guard.gate.gates[-1].gate, ClusterSessions)


class Lifespan:
    """Runs an application's lifespan around a block."""

    def __init__(self, app):
        self.app = app
        self.sent = []
        self.stop = anyio.Event()
        self.changed = anyio.Event()

    async def receive(self):
        if not self.sent:
            return {"type": "lifespan.startup"}
        await self.stop.wait()
        return {"type": "lifespan.shutdown"}

    async def send(self, message):
        self.sent.append(message["type"])
        self.changed.set()


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await Handler()(scope, receive, send)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cluster_syncs_from_the_start_and_leaves_at_the_end(server):
    guard = Guard(Settings(redis_url=server.url, cluster_max_sessions=10, cluster_lease_duration=600))
    app = CloseCodeMiddleware(application, guard)
    lifespan = Lifespan(app)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, {"type": "lifespan"}, lifespan.receive, lifespan.send)
        with anyio.fail_after(60):
            while not server.command("ZCARD", "closecodes:{default}:expiry"):
                await anyio.sleep(0.01)
        assert (await Peer().visit(app)).heard == ["accept"]
        lifespan.stop.set()
    assert lifespan.sent[-1] == "lifespan.shutdown.complete"
    assert server.command("ZCARD", "closecodes:{default}:expiry") == 0


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_worker_that_left_stays_away_while_the_ticker_goes_on(server):
    limits = {"cluster_max_sessions": 10, "cluster_max_sessions_per_client": 2}
    guard = Guard(
        Settings(redis_url=server.url, when_client_full="replace_oldest", cluster_lease_duration=600, **limits)
    )
    for _ in range(2):  # it may be started again
        async with guard.lifespan():
            with anyio.fail_after(60):
                while len(server.command("KEYS", "*")) < 5:
                    await anyio.sleep(0.01)
        guard._ticker.start_if_needed()  # as it goes on for a session that outlives the lifespan
        await anyio.sleep(3 * TICK_S)
        assert guard._ticker.is_running
        assert server.command("KEYS", "*") == [b"closecodes:{default}:meta"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_worker_far_from_the_server_leaves_too(server):
    limits = {"cluster_max_sessions": 10, "cluster_max_sessions_per_client": 2}
    async with Proxy(server.socket) as proxy:
        proxy.delay = 0.2  # to leave is a new connection: three round trips
        guard = Guard(Settings(redis_url=proxy.url, cluster_lease_duration=600, **limits))
        async with guard.lifespan():
            with anyio.fail_after(60):
                while len(server.command("KEYS", "*")) < 5:
                    await anyio.sleep(0.01)
            await anyio.sleep(3 * proxy.delay)  # the answers are on their way
        assert server.command("KEYS", "*") == [b"closecodes:{default}:meta"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cluster_without_a_lifespan_works_too(server):
    guard = Guard(Settings(redis_url=server.url, cluster_max_sessions=0))
    app = CloseCodeMiddleware(application, guard)
    code, reason = (await Peer().visit(app)).closed
    assert code == 1013
    assert reason.endswith("cause=cluster")
    guard.update(cluster_max_sessions=5)
    with anyio.fail_after(60):
        while (await Peer().visit(app)).heard != ["accept"]:
            await anyio.sleep(0.05)
    for gate in cluster_gates(guard):
        await gate.stop()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_the_application_does_not_start(anyio_backend):
    guard = Guard(Settings(redis_url="redis://localhost", cluster_max_sessions=10))
    app = CloseCodeMiddleware(application, guard)
    lifespan = Lifespan(app)
    with pytest.raises(RuntimeError, match="does not run on trio"):
        await app({"type": "lifespan"}, lifespan.receive, lifespan.send)
    assert lifespan.sent == ["lifespan.startup.failed"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_sessions_over_a_lowered_cluster_limit_are_shed(server):
    gone = anyio.Event()

    class Guest(Peer):
        async def receive(self):
            if len(self._says) == 1:
                await gone.wait()
            return await super().receive()

    guard = Guard(Settings(redis_url=server.url, cluster_max_sessions=10, shed_rate=100, cluster_lease_duration=3))
    app = CloseCodeMiddleware(application, guard)
    peers = [Guest() for _ in range(6)]
    async with anyio.create_task_group() as tasks:
        for peer in peers:
            tasks.start_soon(peer.visit, app)
        with anyio.fail_after(60):
            while len(guard.sessions) < 6:
                await anyio.sleep(0.01)
            guard.update(cluster_max_sessions=2)
            while len(guard.sessions) > 2:
                await anyio.sleep(0.01)
        gone.set()
    assert sorted(peer.closed[0] if "close" in peer.heard else 0 for peer in peers) == [0] * 2 + [1013] * 4
    assert guard.snapshot()["sheds"] == {"cluster": 4}
    for gate in cluster_gates(guard):
        await gate.stop()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cluster_event_is_logged_in_one_line(caplog):
    caplog.set_level(logging.INFO)
    with running(requirepass="right") as server:
        url = f"unix://:s3cret@{server.socket}"
        guard = Guard(Settings(redis_url=url, cluster_max_sessions=10))
        await Peer().visit(CloseCodeMiddleware(application, guard))
        for gate in cluster_gates(guard):
            await gate.stop()
    record = next(record for record in caplog.records if "does not accept the user" in record.getMessage())
    assert vars(record)["event.name"] == "closecodes.cluster.unreachable"
    assert record.levelname == "WARNING"
    assert "s3cret" not in caplog.text
    assert vars(record)["closecodes.cluster.fallback"] == "share"


def test_package_import_loads_no_cluster():
    """It takes long to import, for few; public names bring it."""
    code = (
        "import sys, asgi_closecodes; from asgi_closecodes import gates\n"
        "loaded = [name for name in sys.modules if 'cluster' in name and name.startswith('asgi_closecodes')]\n"
        "assert not loaded, loaded\n"
        "assert gates.ClusterSessions.__name__ in gates.__all__\n"
        "assert not hasattr(gates, 'ClusterSesions')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
