"""The recipes for applications with pages: one session by the framework's own protocol, and no place for a second."""

import asyncio
import json
import re
import urllib.error
import urllib.request
import uuid
from contextlib import asynccontextmanager

import pytest
import websockets

from tests.integrations.peers import PATIENCE_S
from tests.support.peers import wait_until
from tests.support.programs import module
from tests.support.servers import serve

SERVER = "uvicorn {app} {uvicorn_bind} --factory --ws websockets-sansio"
OWN_COMMAND = "tests.integrations.own_commands {app} {uvicorn_bind}"
SERVED = {
    "ui.run_with": ("nicegui", SERVER),
    "ui.run": ("nicegui", OWN_COMMAND),
    "streamlit.App": ("streamlit", SERVER),
    "streamlit-run": ("streamlit", OWN_COMMAND),
    "marimo": ("marimo", SERVER),
    "mount_chainlit": ("chainlit", SERVER),
    "chainlit-run": ("chainlit", OWN_COMMAND),
    "shiny": ("shiny", SERVER),
}

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module", params=SERVED)
def served(request, tmp_path_factory):
    """Return a server that has room for one session, and how to come in there."""
    name, command = SERVED[request.param]
    module(name)
    path = tmp_path_factory.mktemp(name)
    app = f"tests.live.front_ends.apps:{name}" if command == SERVER else name
    env = {"CLOSECODES_MAX_SESSIONS": "1", "CHAINLIT_APP_ROOT": str(path)}
    with serve(command, app, path, env=env, forked=command == SERVER) as running:
        yield running, globals()[f"in_{name}"]


def fetch(running, path="/"):
    with urllib.request.urlopen(running.url.replace("ws", "http") + path, timeout=PATIENCE_S) as response:
        return response.url, response.read().decode()


@asynccontextmanager
async def socketio(running, path, **options):
    import aiohttp
    from socketio import AsyncClient
    from socketio.exceptions import ConnectionError as NotConnected

    async with aiohttp.ClientSession() as http:
        client = AsyncClient(reconnection=False, http_session=http)
        try:
            await client.connect(running.url, socketio_path=path, transports=["websocket"], **options)
        except NotConnected as refused:
            raise Refused(await asyncio.to_thread(poll, running, path)) from refused
        try:
            yield client
        finally:
            await client.disconnect()


class Refused(Exception):
    """How a client was turned away."""


def poll(running, path):
    """Come by HTTP, as a client does that gets no WebSocket."""
    try:
        fetch(running, f"/{path}/?EIO=4&transport=polling")
    except urllib.error.HTTPError as answer:
        return answer.code if answer.headers["retry-after"] else None


@asynccontextmanager
async def in_nicegui(running):
    _, page = await asyncio.to_thread(fetch, running)
    assert "hello" in page
    [client_id] = re.findall(r"'client_id': '([0-9a-f-]+)'", page)
    async with socketio(running, "_nicegui_ws/socket.io") as client:
        who = {"client_id": client_id, "tab_id": "1", "document_id": "2", "next_message_id": 0}
        assert await client.call("handshake", who)
        yield


@asynccontextmanager
async def in_chainlit(running):
    url, _ = await asyncio.to_thread(fetch, running, "/chat")
    path = "chat/ws/socket.io" if url.endswith("/chat/") else "ws/socket.io"
    auth = {"sessionId": str(uuid.uuid4()), "clientType": "webapp", "userEnv": "{}"}
    async with socketio(running, path, auth=auth) as client:
        said = asyncio.Queue()
        client.on("new_message", said.put)
        await client.emit("connection_successful")
        while (await said.get())["output"] != "hello":
            pass
        yield client


@asynccontextmanager
async def in_streamlit(running):
    from streamlit.proto.BackMsg_pb2 import BackMsg

    url = f"{running.url}/_stcore/stream"
    async with websockets.connect(url, subprotocols=["streamlit"], proxy=None) as websocket:
        await websocket.send(BackMsg(rerun_script={}).SerializeToString())
        while b"hello" not in await websocket.recv():
            pass
        yield


@asynccontextmanager
async def in_marimo(running):
    async with websockets.connect(f"{running.url}/ws?session_id={uuid.uuid4()}", proxy=None) as websocket:
        assert json.loads(await websocket.recv())["op"] == "kernel-ready"
        yield


@asynccontextmanager
async def in_shiny(running):
    async with websockets.connect(f"{running.url}/websocket/", proxy=None) as websocket:
        assert json.loads(await websocket.recv())["config"]["sessionId"]
        yield


async def refusal(running, enter):
    """Return how a second client is turned away, None if it is not."""
    try:
        async with enter(running):
            return None
    except websockets.ConnectionClosed as closed:
        return closed.rcvd.code
    except Refused as refused:
        return refused.args[0]


async def test_front_end_recipe_has_place_for_one(served):
    running, enter = served
    async with asyncio.timeout(4 * PATIENCE_S):
        async with enter(running):
            assert await refusal(running, enter) in (1013, 503)
        while await refusal(running, enter) is not None:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("served", ["mount_chainlit", "chainlit-run"], indirect=True, scope="module")
async def test_front_end_chainlit_callback_ends_its_session(served):
    running, enter = served
    message = {"id": str(uuid.uuid4()), "type": "user_message", "name": "x", "output": "x", "createdAt": "2026-01-01"}
    async with asyncio.timeout(4 * PATIENCE_S), enter(running) as client:
        left = asyncio.Event()
        client.on("disconnect", lambda *reason: left.set())
        await client.emit("client_message", {"message": message, "fileReferences": []})
        await left.wait()
    assert await asyncio.to_thread(wait_until, lambda: "close code 1011; ref=" in running.log())
