"""The demo's workers under one limit."""

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
            for _ in range(12):
                socket = await stack.enter_async_context(websockets.connect(f"{demo.url}/echo", proxy=None))
                with contextlib.suppress(websockets.ConnectionClosed):
                    await socket.send("?")
                    await socket.recv()
                codes.append(socket.close_code)
            assert codes.count(None) == 3
            assert set(codes) == {None, 1013}


def test_other_servers_have_no_workers():
    status, _, errors = outcome("--workers", "2", "--server", "hypercorn")
    assert (status, "use uvicorn" in errors) == (1, True)
