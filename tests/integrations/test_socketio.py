"""python-socketio with its own client: it comes by HTTP first, and upgrades to a WebSocket."""

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.integrations.peers import PATIENCE_S, SocketIO, control, end_of, opened, visit
from tests.support.peers import wait_until
from tests.support.programs import module


@pytest.fixture(scope="module", params=["both", "both_first"])
def running(request, application):
    """Handlers are registered before ``install()``, or after it."""
    module("socketio")
    return application(f"socketio.{request.param}")


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Seen:
    """The events of a client, each in a queue of its own."""

    def __init__(self, client):
        self.queues = {name: asyncio.Queue() for name in ("connect", "disconnect", "connect_error")}
        for name, queue in self.queues.items():
            client.on(name, self.note(queue))

    def note(self, queue):
        async def note(*arguments):
            queue.put_nowait(arguments)

        return note

    async def next(self, name):
        with anyio.fail_after(PATIENCE_S):
            return await self.queues[name].get()


@asynccontextmanager
async def connected(running, *, auth=None, namespaces=None, **options):
    import socketio

    client = socketio.AsyncClient(**options)
    seen = Seen(client)
    await client.connect(
        running.host.replace("ws", "http"),
        socketio_path=f"{running.name}/socket.io",
        auth=auth,
        namespaces=namespaces,
        wait_timeout=PATIENCE_S,
    )
    try:
        yield client, seen
    finally:
        await client.shutdown()


pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:parameter 'timeout' of type 'float':DeprecationWarning"),  # older clients
]


async def test_socketio_client_upgrades_and_gets_answers(running):
    async with connected(running, namespaces=["/", "/below", "/legacy"], reconnection=False) as (client, _):
        assert client.transport() == "websocket"
        assert await client.call("echo", "x") == "x"
        assert await client.call("echo", "y", namespace="/below") == "y"


async def test_socketio_crash_after_upgrade_is_one_record(running):
    before = len(running.records(level="error"))
    async with connected(running, reconnection=False) as (client, seen):
        await client.emit("crash", "x")
        await seen.next("disconnect")
    records = running.wait_for_records(before + 1, level="error")[before:]
    assert [record["websocket.close.code"] for record in records] == [1011]


async def test_socketio_crash_in_a_namespace_is_one_record(running):
    before = len(running.records(level="error"))
    async with connected(running, namespaces=["/below"], reconnection=False) as (client, _):
        await client.emit("crash", "x", namespace="/below")
        with anyio.fail_after(PATIENCE_S):
            await client.wait()
    assert len(running.wait_for_records(before + 1, level="error")[before:]) == 1


async def test_socketio_refusal_of_connect_stays_one(running):
    import socketio

    with pytest.raises(socketio.exceptions.ConnectionError):
        async with connected(running, auth={"refuse": True}, reconnection=False):
            pass
    assert await asyncio.to_thread(alive_after_refusal, running) == "open"


BUSY = {"code": 1013, "retry_after": 2.0, "cause": "db"}
REFUSALS = {
    "asked": {"message": "as asked", "data": {"code": 4001}},
    "busy": {"message": "try again later", "data": BUSY},
    "mapped": {"message": "connection refused", "data": {"code": 3003}},
    "unsendable": {"message": "internal error", "data": {"code": 1011}},
}


async def refusal_of(running, early, transport, namespace="/"):
    """Return what a client of ``namespace`` is told that is not let in."""
    import socketio

    client = socketio.AsyncClient(reconnection=False)
    told = asyncio.Queue()

    async def note(data):
        told.put_nowait(data)

    client.on("connect_error", note, namespace=namespace)
    await client.connect(
        running.host.replace("ws", "http"),
        socketio_path=f"{running.name}/socket.io",
        auth={"early": early},
        namespaces=[namespace],
        transports=[transport],
        wait=False,
    )
    try:
        with anyio.fail_after(PATIENCE_S):
            return await told.get()
    finally:
        await client.eio.disconnect(abort=True)  # by HTTP it would wait for a last answer


@pytest.mark.parametrize("namespace", ["/", "/below"])
@pytest.mark.parametrize("transport", ["polling", "websocket"])
@pytest.mark.parametrize("early", REFUSALS)
async def test_socketio_close_in_connect_is_a_refusal(running, early, transport, namespace):
    """Clients come back after every close code, and by HTTP there is no code: they would wait for ever."""
    assert await refusal_of(running, early, transport, namespace) == REFUSALS[early]


async def test_socketio_crash_in_connect_by_http_is_told(running):
    """The client does not wait for ever, python-socketio's log has the exception, the client not its text."""
    before = running.log().count("connect handler error")
    told = await refusal_of(running, "7", "polling")
    assert told == {"message": "internal error", "data": {"code": 1011}}

    def is_logged():
        _, *logged = running.log().split("connect handler error")
        return len(logged) > before and "ValueError: secret" in logged[-1]

    assert await asyncio.to_thread(wait_until, is_logged)


@pytest.mark.parametrize(("name", "packet"), [("both", "44"), ("always", "41")])
def test_socketio_refused_client_is_told_then_closed(application, name, packet):
    """Told first, it does not come back. A server that always connects tells it with another packet."""
    with opened(application(f"socketio.{name}"), SocketIO.paths["early"]) as websocket:
        websocket.send('40{"early":"asked"}')
        while not (said := websocket.recv(timeout=PATIENCE_S)).startswith(packet):
            pass
        assert json.loads(said[2:]) == REFUSALS["asked"]
        assert end_of(websocket) == "4001 as asked"


def test_socketio_login_refuses_and_limits_a_user(application):
    """The example of README.md: by HTTP nobody comes in, without a token neither, and three sessions of a user do."""
    running = application("socketio.login")
    path = SocketIO.paths["early"]
    of_gate = {"event__name": "closecodes.session.refused", "closecodes__gate__name": "user"}
    before = running.records(**of_gate)  # of other applications on the same server
    assert poll(running, "EIO=4&transport=polling")[0] == 400
    with contextlib.ExitStack() as stack:

        def come(token):
            websocket = stack.enter_context(opened(running, path))
            websocket.send(f'40{{"token":"{token}"}}')
            while not (said := websocket.recv(timeout=PATIENCE_S)).startswith("4"):
                pass
            return said[:2], websocket

        said, stranger = come("stolen")
        assert (said, end_of(stranger)) == ("44", "4001 sign in")
        assert [come("a token")[0] for _ in range(3)] == ["40"] * 3
        said, fourth = come("a token")
        assert said == "44"
        assert end_of(fourth).startswith("1013")
    [refused] = running.wait_for_records(len(before) + 1, **of_gate)[len(before) :]
    assert refused["websocket.close.code"] == 1013


def alive_after_refusal(running):
    class Refused(SocketIO):
        says = {"early": ('40{"refuse":true}',)}

    return visit(running, Refused, "early", bare=True)


def poll(running, query):
    """Return how a request of Engine.IO's HTTP transport is answered."""
    try:
        with urllib.request.urlopen(f"{running.url.replace('ws', 'http')}/socket.io/?{query}") as response:
            return response.status, None
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Retry-After"]


@pytest.mark.parametrize(("full", "free"), [("drain", "resume"), ("limit", "unlimit")])
async def test_socketio_drained_client_waits_for_room(running, full, free):
    """It is not back by HTTP in the same process at once."""
    async with connected(running, reconnection_delay=0.05, reconnection_delay_max=0.05) as (client, seen):
        await seen.next("connect")
        try:
            await asyncio.to_thread(control, running, full)
            await asyncio.to_thread(control, running, "shed")
            await seen.next("disconnect")
            for _ in range(2):
                await seen.next("connect_error")
            status, retry_after = await asyncio.to_thread(poll, running, "EIO=4&transport=polling")
            assert status == 503
            assert int(retry_after) >= 1
            assert (await asyncio.to_thread(poll, running, "EIO=4&transport=polling&sid=x"))[0] == 400
        finally:
            await asyncio.to_thread(control, running, free)
        await seen.next("connect")
        assert await client.call("echo", "x") == "x"


async def test_socketio_nothing_leaks(running):
    async with connected(running, reconnection=False) as (client, _):
        await client.call("echo", "x")

    def is_empty():
        state = json.loads(control(running, "state"))
        return state["open"] + state["leaving"] == 0

    assert await asyncio.to_thread(wait_until, is_empty)
