"""A limit of memory that 200 sessions exceed, on uvicorn: rounds that bring it back, and rounds that cannot."""

import asyncio
import contextlib
import time

import pytest
import websockets

from tests.support.peers import tell
from tests.support.servers import serve

SESSIONS = 200
FUTILE = {"event.name": "closecodes.gate.shedding_futile"}


@pytest.fixture
def server(tmp_path):
    with serve("uvicorn-sansio", "tests.live.servers.memory:app", tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def crowd(server, cleanup=0.0):
    """Sessions that have said something, and whose clients answer a close."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(SESSIONS):
            session = websockets.connect(f"{server.url}/{cleanup}", proxy=None, ping_interval=None)
            peer = await stack.enter_async_context(session)
            await peer.send("hello")
            await peer.recv()
        await told(server, leak=1)  # the end of the heap is somebody else's
        yield


async def told(server, **what):
    return await asyncio.to_thread(tell, server, **what)


async def until(server, condition, within=60):
    """The state as soon as it is as wanted."""
    deadline = time.monotonic() + within
    while not condition(state := await told(server)):
        assert time.monotonic() < deadline, state
        await asyncio.sleep(0.1)
    return state


async def unchanged(server, seconds):
    """The state, once nobody has been shed for so long."""
    state = await told(server)
    while (await asyncio.sleep(seconds)) is None and (now := await told(server))["sheds"] != state["sheds"]:
        state = now
    return now


def test_sessions_above_a_memory_limit_go_until_it_is_kept(server):
    async def main():
        async with crowd(server):
            before = await told(server, share=0.9)
            assert before["resident"] > 1.1 * before["limit"]
            after = await until(server, lambda state: state["resident"] < 1.1 * state["limit"])
            after = await unchanged(server, 4)
            assert 0.7 * SESSIONS <= after["open"] < SESSIONS
            assert after["resident"] < 1.1 * after["limit"]
            assert after["sheds"] == {"memory": SESSIONS - after["open"]}
            assert after["protocols"] == after["open"]  # without a collection

    asyncio.run(main())
    assert not server.records(**FUTILE)


def test_leaked_memory_costs_two_rounds_and_is_told_once(server):
    async def main():
        async with crowd(server):
            await told(server, share=1)
            await told(server, leak=120)
            await asyncio.to_thread(server.wait_for_records, within=60, **FUTILE)
            after = await unchanged(server, 4)
            assert 0.9 * SESSIONS <= after["open"] < SESSIONS

    asyncio.run(main())
    assert len(server.records(**FUTILE)) == 1


def test_sessions_that_clean_up_are_waited_for(server):
    """Longer than a round that does not wait would take."""

    async def main():
        async with crowd(server, cleanup=4):
            await told(server, share=0.9)
            state = await until(server, lambda state: state["leaving"])
            start = state["at"]
            state = await until(server, lambda state: not state["leaving"])
            assert state["sheds"] == {"memory": SESSIONS // 20}
            assert state["at"] - start > 3
            await until(
                server,
                lambda state: state["sheds"]["memory"] > SESSIONS // 20 or state["resident"] < 1.1 * state["limit"],
            )

    asyncio.run(main())
    assert not server.records(**FUTILE)
