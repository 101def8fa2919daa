"""The clock of tests that wait for nothing; see tests/support/clocks.py."""

import time

import anyio
import anyio.lowlevel
import pytest

from asgi_closecodes.token_bucket import TokenBucket

pytestmark = [pytest.mark.anyio, pytest.mark.jumping_clock]


async def test_hours_pass_at_once_for_the_package_too():
    """Where it takes a clock as an argument, and where it reads ``time.monotonic()``."""
    rate, before = TokenBucket(1 / 3600, 1), time.monotonic()
    assert rate.take()
    await anyio.sleep(3599)
    assert not rate.take()
    await anyio.sleep(1.1)
    assert rate.take()
    assert 3600 < time.monotonic() - before < 3601


async def test_time_goes_on_beside_a_task_that_is_always_ready():
    async def turn():
        while True:
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(turn)
        await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()


async def test_time_limit_that_has_ended_is_not_waited_for():
    before = anyio.current_time()
    with anyio.fail_after(60):
        await anyio.lowlevel.checkpoint()
    await anyio.sleep(3600)
    assert anyio.current_time() - before < 3601
