"""``with session.busy():`` in handlers, their tasks and their threads."""

import anyio
import anyio.to_thread
import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.events import DrainStarted, SessionShed
from tests.support.asgi import events_of
from tests.support.fakes import ConnectedClients, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.jumping_clock]


class Calls:
    """A handler that does ``block`` with its session, and waits for its peer then."""

    def __init__(self, block):
        self.block = block
        self.sessions = []

    async def __call__(self, scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        session = scope["extensions"]["closecodes"]
        self.sessions.append(session)
        await self.block(session)
        while (await receive())["type"] != "websocket.disconnect":
            pass


def busy(guard):
    return guard.snapshot()["busy"]


async def test_busy_blocks_nest_in_tasks_and_threads():
    guard, counts = Guard(Settings()), []

    async def child(session):
        with session.busy():
            counts.append(busy(guard))

    def thread(session):
        with session.busy():
            counts.append(busy(guard))

    async def block(session):
        with session.busy(), session.busy():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child, session)
            await anyio.to_thread.run_sync(thread, session)
            counts.append(busy(guard))
        counts.append(busy(guard))

    async with ConnectedClients(guard, Calls(block)) as stay:
        await stay.come(1)
        await wait_until(lambda: len(counts) == 4)
    assert counts == [1, 1, 1, 0]


async def test_busy_block_that_raises_or_is_cancelled_ends():
    guard, after = Guard(Settings()), []

    async def block(session):
        with pytest.raises(ValueError), session.busy():
            raise ValueError
        after.append(busy(guard))
        with anyio.move_on_after(0.01), session.busy():
            await anyio.sleep_forever()
        after.append(busy(guard))

    async with ConnectedClients(guard, Calls(block)) as stay:
        await stay.come(1)
        await wait_until(lambda: len(after) == 2)
    assert after == [0, 0]


async def test_busy_session_that_crashes_is_none_any_more():
    guard, calls = Guard(Settings()), []

    async def block(session):
        calls.append(session.busy())
        calls[0].__enter__()
        raise ValueError

    async with ConnectedClients(guard, Calls(block)) as stay:
        await stay.come(1)
        await wait_until(lambda: calls and not guard.sessions)
    assert busy(guard) == 0
    calls[0].__exit__(None, None, None)
    assert not guard.busy_sessions._blocks


async def test_busy_session_that_is_over_changes_nothing():
    guard, handler = Guard(Settings()), Calls(lambda session: anyio.sleep(0))
    async with ConnectedClients(guard, handler) as stay:
        await stay.come(1)
    [session] = handler.sessions
    with session.busy():
        assert busy(guard) == 0
    assert not guard.busy_sessions._blocks


async def test_busy_session_that_is_told_to_end_is_leaving():
    guard = Guard(Settings())

    async def block(session):
        with session.busy():
            await session.shed("test")
            assert busy(guard) == 0

    async with ConnectedClients(guard, Calls(block)) as stay:
        await stay.come(1)
        await wait_until(lambda: stay.codes() == [1013])


async def test_drain_waits_for_busy_sessions_and_refuses_at_once():
    seen, done = [], anyio.Event()
    guard = Guard(Settings(drain_window=0, drain_patience=60), observers=[seen.append])

    async def block(session):
        if session.scope["path"] == "/call":
            with session.busy():
                await done.wait()

    async with ConnectedClients(guard, Calls(block)) as stay, anyio.create_task_group() as tasks:
        await stay.come(2, path="/call")
        await stay.come(2)
        await wait_until(lambda: busy(guard) == 2)
        tasks.start_soon(guard.drain)
        await wait_until(lambda: guard.snapshot()["open"] == 2)
        await wait_until(lambda: stay.codes() == [None, None, 1012, 1012])
        state = guard.snapshot()["drain"]
        assert (state["sessions"], state["remaining"], state["waits_for_busy"]) == (4, 2, True)
        await stay.come(1)
        await wait_until(lambda: stay.codes()[4] == 1012)
        done.set()
        await wait_until(lambda: stay.codes() == [1012] * 5)
    assert [event.patience for event in events_of(DrainStarted, seen)] == [60]
    assert [event.cause for event in events_of(SessionShed, seen)] == ["drain"] * 4
    assert guard.snapshot()["drain"] is None


async def test_drain_without_patience_cuts_busy_sessions():
    guard = Guard(Settings(drain_patience=60))

    async def block(session):
        with session.busy():
            await anyio.sleep_forever()

    async with ConnectedClients(guard, Calls(block)) as stay:
        await stay.come(2)
        await guard.drain(0, patience=0)
        assert stay.codes() == [1012] * 2
        stay.tasks.cancel_scope.cancel()


async def test_shedding_takes_those_that_are_not_busy():
    guard = Guard(Settings(max_sessions=4, shed_rate=100))

    async def block(session):
        if session.scope["path"] == "/call":
            with session.busy():
                await anyio.sleep_forever()

    async with ConnectedClients(guard, Calls(block)) as stay:
        await stay.come(2)
        await stay.come(2, path="/call")  # the newest go first otherwise
        await wait_until(lambda: busy(guard) == 2)
        guard.update(max_sessions=2)
        await wait_until(lambda: stay.codes() == [1013, 1013, None, None])
        stay.tasks.cancel_scope.cancel()


async def test_busy_session_costs_nothing_until_it_is():
    guard, handler = Guard(Settings()), Calls(lambda session: anyio.sleep(0))
    async with ConnectedClients(guard, handler) as stay:
        await stay.come(3)
        assert not guard.busy_sessions._blocks
    assert CloseCodeMiddleware(handler, guard).guard is guard
