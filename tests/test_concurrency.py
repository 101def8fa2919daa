"""A timeout ends what takes too long, and nothing else; on asyncio it is asyncio's own, without the exception."""

import asyncio
import itertools
from functools import partial

import anyio
import anyio.lowlevel
import pytest
import trio

from asgi_closecodes.concurrency import Timeout, limited, move_on_after, on_asyncio, spawn


@pytest.mark.anyio
async def test_time_limit_kept_leaves_the_task_alone():
    with move_on_after(0.01) as timeout:
        await anyio.lowlevel.checkpoint()
    await anyio.sleep(0.05)
    assert not timeout.cancelled_caught


@pytest.mark.anyio
@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_time_limit_exceeded_cancels_the_body_not_the_task(seconds):
    with anyio.fail_after(5):
        with move_on_after(seconds) as timeout:
            await anyio.sleep_forever()
        assert timeout.cancelled_caught
        await anyio.sleep(0.001)


def test_on_asyncio_a_task_may_be_given_one_by_another_task():
    async def main():
        overstaying = asyncio.create_task(asyncio.sleep(60))
        timeout = Timeout(0.01, overstaying)
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await overstaying
        assert timeout.stop(cancelled.value)

    asyncio.run(main())


def test_on_asyncio_one_that_is_stopped_cancels_nothing():
    """As where a session is shed while it says its last word."""

    async def main():
        task = asyncio.create_task(asyncio.sleep(0.05))
        timeout = Timeout(0.01, task)
        assert not timeout.stop(None)
        await task

    asyncio.run(main())


@pytest.mark.anyio
async def test_error_on_the_way_out_is_not_lost():
    with pytest.raises(KeyError), move_on_after(0) as timeout:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError
    assert not timeout.cancelled_caught


@pytest.mark.anyio
async def test_scopes_and_task_groups_inside_end_with_it():
    with anyio.fail_after(5):
        with move_on_after(0.01) as timeout:
            with anyio.move_on_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.sleep_forever)
                    await anyio.sleep_forever()
        assert timeout.cancelled_caught


@pytest.mark.anyio
async def test_cancellation_of_a_scope_around_it_passes():
    with anyio.CancelScope() as scope:
        with move_on_after(60) as timeout:
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not timeout.cancelled_caught


def test_on_asyncio_it_does_what_the_one_of_asyncio_does():
    """Whenever it expires, whenever the task is cancelled, and whatever that meets."""

    async def asyncios(body, started):
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                started(lambda: timeout.reschedule(asyncio.get_running_loop().time()))
                return await body()
        except TimeoutError:
            return "timed out"

    async def ours(body, started):
        timeout = None

        def expire(task=asyncio.current_task()):
            nonlocal timeout
            timeout = Timeout(0, task)

        started(expire)
        error = None
        try:
            return await body()
        except BaseException as raised:
            error = raised
            if timeout is not None and timeout.stop(error):
                return "timed out"
            raise
        finally:
            if timeout is not None and error is None:
                timeout.stop(None)

    async def outcome_of(kind, expires, cancelled, turns, stubborn):
        async def body():
            for _ in range(turns):
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    if stubborn == "raises":
                        raise KeyError from None
                    if not stubborn:
                        raise
            return "done"

        async def main():
            try:
                return await kind(body, started), asyncio.current_task().cancelling()
            except (KeyError, asyncio.CancelledError) as error:
                return type(error), asyncio.current_task().cancelling()

        expire = None

        def started(how):
            nonlocal expire
            expire = how

        task = asyncio.create_task(main())
        for turn in range(8):
            await asyncio.sleep(0)
            if turn == cancelled:
                task.cancel()
            if turn == expires and not task.done():
                expire()
        return await task

    async def compare():
        outcomes = set()
        for case in itertools.product(range(5), range(5), range(1, 6), (False, True, "raises")):
            expected, actual = [await outcome_of(kind, *case) for kind in (asyncios, ours)]
            assert actual == expected, case
            outcomes.add(actual)
        assert {outcome for outcome, _ in outcomes} == {"done", "timed out", KeyError, asyncio.CancelledError}

    asyncio.run(compare())


async def waits(seconds, *, swallows=False):
    await anyio.sleep(0)
    with anyio.CancelScope():  # as a server's send may open before it waits
        try:
            await anyio.sleep(seconds)
        except anyio.get_cancelled_exc_class():
            if not swallows or not on_asyncio():
                raise


@pytest.mark.anyio
@pytest.mark.parametrize(("seconds", "swallows", "is_late"), [(0, False, False), (60, False, True), (60, True, None)])
async def test_limited_says_whether_the_time_was_up(seconds, swallows, is_late):
    limit = partial(move_on_after, 0.01 if seconds else 60)
    expected = not on_asyncio() if is_late is None else is_late
    assert await limited(waits(seconds, swallows=swallows), limit) is expected
    if on_asyncio():
        assert asyncio.current_task().cancelling() == 0
    await anyio.sleep(0)


@pytest.mark.anyio
async def test_limited_raises_what_is_raised_before_and_after_a_wait():
    async def fails(wait):
        if wait:
            await anyio.sleep(0)
        raise KeyError(wait)

    for wait in (False, True):
        with pytest.raises(KeyError, match=str(wait)):
            await limited(fails(wait), partial(move_on_after, 60))


@pytest.mark.anyio
async def test_limited_lets_others_cancel():
    with anyio.move_on_after(0.01) as scope:
        await limited(waits(60), partial(move_on_after, 60))
    assert scope.cancelled_caught


def test_limited_makes_no_timer_where_nothing_is_waited_for():
    """A timer takes longer than the send of a server that waits for nothing."""

    async def send():
        sent.append(1)

    async def main():
        assert await limited(send(), lambda: 1 / 0) is False

    sent = []
    asyncio.run(main())
    assert sent


def test_limited_that_is_thrown_away_closes_what_it_awaits():
    closed = []

    async def send():
        try:
            await asyncio.sleep(60)
        finally:
            closed.append(1)

    async def main():
        waiting = limited(send(), partial(move_on_after, 60))
        waiting.send(None)
        waiting.close()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert closed


def test_spawn_in_trio_that_ends_does_nothing():
    """What another thread has scheduled is called when trio starts no tasks any more."""
    called = []

    async def generator():
        try:
            yield
        finally:
            spawn(anyio.sleep, 0)
            called.append(True)

    async def main():
        await anext(left_open)

    left_open = generator()  # trio closes it when its tasks have ended
    trio.run(main)
    assert called


def test_spawn_without_an_event_loop_raises():
    with pytest.raises(RuntimeError, match="must be called from async context"):
        spawn(anyio.sleep, 0)
