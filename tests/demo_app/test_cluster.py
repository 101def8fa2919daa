"""The demo's workers under one limit."""

import asyncio
import contextlib

import pytest
import websockets

from tests.support.demo import outcome, running_demo
from tests.support.redis import a_binary


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_two_workers_hold_one_limit(tmp_path):
    assert a_binary()
    with running_demo(tmp_path, "--workers", "2", "--cluster", CLOSECODES_CLUSTER_MAX_SESSIONS="3") as demo:
        async with contextlib.AsyncExitStack() as stack:
            codes = []

            async def come():
                socket = await stack.enter_async_context(websockets.connect(f"{demo.url}/echo", proxy=None))
                with contextlib.suppress(websockets.ConnectionClosed):
                    await socket.send("?")
                    await socket.recv()
                codes.append(socket.close_code)

            # A worker that nobody comes to may hold a place in advance, and gives it back with a later sync.
            async with asyncio.timeout(30):
                while codes.count(None) < 3:
                    await come()
                    await asyncio.sleep(0.05)
            for _ in range(9):
                await come()
            assert codes.count(None) == 3
            assert set(codes) == {None, 1013}


def test_other_servers_have_no_workers():
    status, _, errors = outcome("--workers", "2", "--server", "hypercorn")
    assert (status, "use uvicorn" in errors) == (1, True)
