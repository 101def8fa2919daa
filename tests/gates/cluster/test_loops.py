"""One cluster gate in several event loops, each in its thread: one task speaks for all, and wakes all who wait."""

import asyncio
import gc
import logging
import sys
import threading

import pytest

from asgi_closecodes import TryAgainLater, events
from asgi_closecodes.gates import ClusterSessions, ClusterSessionsPerKey
from asgi_closecodes.gates.cluster.task import ProcessTask
from tests.support.asgi import events_of
from tests.support.fakes import FakeSession, wait_until

KINDS = {
    "sessions": lambda limit, url: ClusterSessions(limit, url, lease_duration=2),
    "per key": lambda limit, url: ClusterSessionsPerKey(limit, url, key=lambda session: "ann", lease_duration=2),
}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def switching():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_loops(*mains):
    """Run all at once, each in an event loop and a thread of its own; raise what one of them raises."""
    failures = []

    def run(main):
        try:
            asyncio.run(asyncio.wait_for(main(), 50))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(main,)) for main in mains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


async def said(condition):
    while not condition():
        await asyncio.sleep(0.005)


async def nothing():
    pass


async def enter(gate, held):
    """Whether a session gets a place in ``gate``."""
    place = gate.admit(FakeSession())
    try:
        await place.__aenter__()
    except TryAgainLater:
        return False
    held.append(place)
    return True


async def leave(held):
    while held:
        await held.pop().__aexit__(None, None, None)


@pytest.mark.parametrize("kind", KINDS)
def test_gate_in_several_loops_counts_exactly(kind, server, switching, caplog):
    """Whoever's task asks the store, and whoever ends first."""
    gate = KINDS[kind](6, server.url)
    told, most = [], []
    gate.attach(told.append)
    start = threading.Barrier(3)

    async def main():
        start.wait()
        admitted = 0
        held = []
        while admitted < 60:
            admitted += sum(await asyncio.gather(*(enter(gate, held) for _ in range(4))))
            most.append(gate.usage)
            await leave(held)
            gate.sample()

    in_loops(main, main, main)
    assert gate.usage == 0
    assert max(most) <= 6
    assert not events_of(events.ClusterUnreachable, told), events_of(events.ClusterUnreachable, told)[0]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not server.command("CLIENT", "LIST").decode().count("cmd=evalsha")


@pytest.mark.parametrize("kind", KINDS)
def test_gate_in_two_live_loops_is_one_worker(kind, server):
    """The task stays where it is, as long as its event loop runs."""
    gate = KINDS[kind](100, server.url)
    is_there = [threading.Event(), threading.Event()]
    is_done = [threading.Event(), threading.Event()]
    tasks = []

    def main(mine, other):
        async def run():
            held = []
            await said(lambda: mine == 0 or is_there[other].is_set())
            while not await enter(gate, held):
                await asyncio.sleep(0.01)
            tasks.append(gate._task._task)
            is_there[mine].set()
            for _ in range(5):
                assert await enter(gate, held)
                gate.sample()
            is_done[mine].set()
            await said(is_done[other].is_set)
            await leave(held)

        return run

    in_loops(main(0, 1), main(1, 0))
    assert tasks[0] is tasks[1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_gate_loop_closed_goes_on_in_the_next(kind, server):
    """Without a word about Redis, which is there."""
    gate = KINDS[kind](10, server.url)
    told = []
    gate.attach(told.append)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    held = []

    async def first():
        while not await enter(gate, held):
            await asyncio.sleep(0.01)
        return gate._task._task, dict(vars(gate))

    kept = loop.run_until_complete(first())
    loop.close()

    async def second():
        await leave(held)
        while not await enter(gate, held):
            await asyncio.sleep(0.01)
        await leave(held)
        await gate.stop()

    asyncio.run(asyncio.wait_for(second(), 30))
    assert not events_of(events.ClusterSyncFailed, told)
    assert gate.usage == 0
    del kept
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_gate_loop_closed_that_asked_answers_in_others(kind, server):
    """Redis stands still as the event loop is closed whose task has asked it for sessions of both."""
    gate = KINDS[kind](10, server.url)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    kept = []
    is_waiting, is_closed = threading.Event(), threading.Event()
    other_held = []

    async def first():
        held = []
        while not await enter(gate, held):
            await asyncio.sleep(0.01)
        await leave(held)
        await said(lambda: gate._task._due() > 0)
        server.pause()
        if kind == "sessions":
            gate.lease.quota = 0
        kept.extend(asyncio.create_task(enter(gate, held)) for _ in range(2))
        is_waiting.set()
        await asyncio.sleep(0.3)
        kept.append(gate._task._task)

    async def second():
        await said(is_waiting.is_set)
        entering = asyncio.create_task(enter(gate, other_held))
        await said(is_closed.is_set)
        gate.sample()
        while not await entering:
            entering = asyncio.create_task(enter(gate, other_held))
            await asyncio.sleep(0.05)
        await leave(other_held)
        await gate.stop()

    def close():
        try:
            loop.run_until_complete(first())
            loop.close()
        finally:
            server.go_on()
            is_closed.set()

    thread = threading.Thread(target=close)
    thread.start()
    in_loops(second)
    thread.join()
    if kind == "sessions":
        assert gate.lease.waiting == 0
    assert gate.usage == 0
    kept.clear()
    gc.collect()


def test_task_turn_wakes_waiters_of_all_loops():
    """What it sets belongs to their event loops: from another thread it would not wake them."""
    turns, ends = [], []
    go_on = threading.Event()

    async def turn():
        turns.append(threading.get_ident())
        await said(go_on.is_set)

    async def end():
        ends.append(threading.get_ident())

    task = ProcessTask(turn, lambda: 0 if task._waiters else 3600, end, lambda _event: None)
    waiting, woken = [], []

    async def main():
        task.start()
        waiting.append(task)
        await said(lambda: len(waiting) == 3)
        go_on.set()
        await task.turn()
        woken.append(task)
        await said(lambda: len(woken) == 3)
        await task.stop()

    in_loops(main, main, main)
    assert len(woken) == 3
    assert len({*turns, *ends}) == len(ends) == 1


def test_task_loop_ends_waiters_of_others_go_on():
    """The next turn is taken in an event loop that is left."""
    is_waiting, is_taken, taken = threading.Event(), threading.Event(), []

    async def turn():
        taken.append(threading.get_ident())
        is_taken.set()
        if len(taken) == 1:
            await asyncio.sleep(60)

    async def end():
        await asyncio.sleep(0.05)

    task = ProcessTask(turn, lambda: 0 if task._waiters else 3600, end, lambda _event: None)

    async def ends():
        task.start()
        await said(is_waiting.is_set)

    async def waits():
        await said(is_taken.is_set)
        waiting = asyncio.create_task(task.turn())
        await asyncio.sleep(0)
        is_waiting.set()
        await waiting
        while len(taken) == 1:
            await task.turn()
        assert taken[1] == threading.get_ident()
        await task.stop()

    in_loops(ends, waits)


def test_task_stopped_in_another_loop_has_ended():
    ends = []

    async def end():
        await asyncio.sleep(0.05)
        ends.append(threading.get_ident())

    task = ProcessTask(nothing, lambda: 3600, end, lambda _event: None)
    is_stopped, is_started = threading.Event(), threading.Event()
    threads = []

    async def runs():
        task.start()
        threads.append(threading.get_ident())
        is_started.set()
        await said(is_stopped.is_set)

    async def stops():
        await said(is_started.is_set)
        await task.stop()
        assert ends == threads
        is_stopped.set()

    in_loops(runs, stops)


def test_task_of_a_loop_that_stood_still_gives_way():
    """Another event loop has taken over: it neither goes on nor ends what goes on there."""
    turns, ends = [], []

    async def turn():
        turns.append(asyncio.get_running_loop())

    async def end():
        ends.append(asyncio.get_running_loop())

    task = ProcessTask(turn, lambda: 3600, end, lambda _event: None)

    async def begin():
        task.start()
        await wait_until(lambda: turns and turns[-1] is asyncio.get_running_loop())

    still, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    still.run_until_complete(begin())
    [old] = asyncio.all_tasks(still)
    other.run_until_complete(begin())
    old.cancel()
    still.run_until_complete(asyncio.wait([old]))
    assert not ends
    other.run_until_complete(task.stop())
    assert ends == [other]
    still.close()
    other.close()
