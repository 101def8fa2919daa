"""One guard in several event loops and threads, one after the other or at once, and in a forked child."""

import asyncio
import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from contextlib import contextmanager

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from starlette.testclient import TestClient

from asgi_closecodes import Close, CloseCodeMiddleware, Guard, Settings, TryAgainLater, events
from asgi_closecodes.concurrency import COUNTING, Claim
from asgi_closecodes.gates import HandshakesInProgress, MaxSessions, MaxSessionsPerKey
from asgi_closecodes.guard import guard as module
from asgi_closecodes.guard.activity import Activity
from asgi_closecodes.guard.retry_after import RetryQueue
from asgi_closecodes.guard.shed_order import ShedOrder
from asgi_closecodes.guard.sigterm import drain_at_sigterm
from asgi_closecodes.token_bucket import TokenBucket
from tests.support.asgi import Handler, Peer, events_of
from tests.support.every_event import FACTS
from tests.support.fakes import ConnectedClients, FakeSession, wait_until

BACKENDS = ["asyncio", "trio"]

# Of the event loops that are closed with tasks in them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def collected():
    """What is left of an event loop is gone before another test."""
    yield
    gc.collect()


@contextmanager
def switching_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(*functions):
    """Run all at once, to their end; raise what one of them raises."""
    errors = []
    start = threading.Barrier(len(functions))

    def run(function):
        start.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "what follows would see half of it"


def closed_in_the_middle(main):
    """Run ``main`` in an event loop that is closed with whatever tasks are in it then."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    loop.run_until_complete(main())
    loop.close()
    return loop


class Elsewhere:
    """Sessions of ``guard`` in an event loop of another thread."""

    def __init__(self, guard, backend="asyncio", handler=None):
        self.guard, self.handler = guard, handler
        self.portals = anyio.from_thread.start_blocking_portal(backend)

    def __enter__(self):
        self.portal = self.portals.__enter__()
        self.stay = self.portal.call(ConnectedClients, self.guard, self.handler)  # its event belongs to that event loop
        self.context = self.portal.wrap_async_context_manager(self.stay)
        self.context.__enter__()
        return self

    def __exit__(self, *error):
        self.context.__exit__(*error)
        return self.portals.__exit__(*error)

    async def __aenter__(self):
        return await anyio.to_thread.run_sync(self.__enter__)

    async def __aexit__(self, *error):
        await anyio.to_thread.run_sync(self.__exit__, *error)

    def come(self, count, **scope):
        self.portal.call(lambda: self.stay.come(count, **scope))

    def codes(self):
        return self.stay.codes()


@pytest.fixture
def strays(monkeypatch):
    """What was sent in another thread than the session's own; a server may do anything then."""
    strays, threads = [], {}
    visit, send = Peer.visit, Peer.send

    async def visit_here(self, app):
        threads[self] = threading.get_ident()
        return await visit(self, app)

    async def send_here(self, message):
        if threads[self] != threading.get_ident():
            strays.append(message)
        await send(self, message)

    monkeypatch.setattr(Peer, "visit", visit_here)
    monkeypatch.setattr(Peer, "send", send_here)
    return strays


def usage(guard):
    gates = [gate for gate in guard.snapshot()["gates"] if gate["cause"] != "lag"]
    return {gate["name"]: gate["usage"] for gate in gates if gate["usage"] is not None}


# Event loops one after the other


@pytest.mark.parametrize("backend", BACKENDS)
def test_guard_loop_closed_ticks_in_the_next(backend):
    """With its tasks in it, as a reload leaves them: a lowered limit sheds in the next event loop."""
    guard = Guard(Settings(max_sessions=10, shed_rate=1000))
    gone = []

    async def first():
        await ConnectedClients(guard).__aenter__()
        guard.update(max_sessions=9)
        await anyio.sleep(0)
        assert guard._ticker.is_running

    gone.append(closed_in_the_middle(first))
    assert not guard._ticker.is_running

    async def second():
        async with ConnectedClients(guard) as stay:
            await stay.come(3)
            guard.update(max_sessions=1)
            await wait_until(lambda: len(guard.sessions) == 1)

    anyio.run(second, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lag_loop_closed_admits_in_the_next(backend):
    """Not even the first handshake is refused for the time that no event loop was there to be late."""
    guard = Guard(Settings(max_loop_lag=0.2))

    async def first():
        await Peer().visit(CloseCodeMiddleware(Handler(), guard))
        await wait_until(lambda: guard._gates["max_loop_lag"].sensor.value() is not None)

    closed_in_the_middle(first)
    guard._gates["max_loop_lag"].sensor._last -= 60

    async def second():
        return (await Peer().visit(CloseCodeMiddleware(Handler(), guard))).heard

    assert anyio.run(second, backend=backend) == ["accept"]


def test_ticker_loop_stopped_moves_and_ends_there():
    """One that is not closed may go on: the ticker is not in both."""
    guard = Guard(Settings(max_sessions=10))

    async def visit():
        await Peer().visit(CloseCodeMiddleware(Handler(), guard))
        await asyncio.sleep(0)

    stopped = asyncio.new_event_loop()
    stopped.run_until_complete(visit())
    other = asyncio.new_event_loop()
    other.run_until_complete(visit())
    assert guard._ticker._claim._holder.is_among({other})
    [old] = asyncio.all_tasks(stopped)
    stopped.run_until_complete(asyncio.wait([old], timeout=10))
    assert old.done()
    assert guard._ticker._claim._holder.is_among({other})
    for loop in (stopped, other):
        for task in asyncio.all_tasks(loop):
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
        loop.close()


def test_ticker_loop_that_goes_on_takes_over_again():
    """It had stopped before the first tick, and another one had begun to tick, which was closed meanwhile."""
    guard = Guard(Settings(max_sessions=10))
    one, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    other.set_exception_handler(lambda *_: None)

    async def visit():
        await Peer().visit(CloseCodeMiddleware(Handler(), guard))
        await asyncio.sleep(0)

    one.call_soon(guard.session, Peer().scope, None, None)
    one.call_soon(one.stop)
    one.run_forever()
    other.run_until_complete(visit())
    assert guard._ticker._claim._holder.is_among({other})
    one.run_until_complete(asyncio.sleep(0))
    other.close()
    one.run_until_complete(visit())
    assert guard._ticker._claim._holder.is_among({one})
    for task in asyncio.all_tasks(one):
        task.cancel()
        one.run_until_complete(asyncio.wait([task]))
    one.close()


@pytest.mark.parametrize("next_backend", BACKENDS)
def test_sessions_loop_closed_give_back_permits(next_backend):
    """They would hold their places for ever: nobody runs them any more."""
    seen = []
    guard = Guard(
        Settings(max_sessions=2, max_sessions_per_client=2, max_handshakes_in_progress=2, shed_order="never"),
        gate=MaxSessionsPerKey(2, key=lambda session: session.scope["path"]),
        observers=[seen.append],
    )

    async def first():
        await (await ConnectedClients(guard).__aenter__()).come(2)

    closed_in_the_middle(first)
    assert usage(guard)["max_sessions"] == 2

    async def second():
        async with ConnectedClients(guard) as stay:
            await stay.come(2)
            assert usage(guard) == {
                "max_sessions": 2,
                "max_sessions_per_client": 2,
                "max_sessions_per_key": 2,
                "max_handshakes_in_progress": 0,
            }
            assert stay.codes() == [None, None]
            gc.collect()
            assert usage(guard)["max_sessions"] == 2
            assert len(guard.sessions) == 2

    anyio.run(second, backend=next_backend)
    assert set(usage(guard).values()) == {0}
    assert len(events_of(events.SessionClosed, seen)) == 4


@pytest.mark.parametrize("who", ["passes the gates", "is in its handshake"])
def test_sessions_arriving_loop_closed_give_back_permits(who):
    """A session that nobody admitted yet, or answered, is known to the gates alone."""
    is_there = []

    class Slow:
        def admit(self, _session):
            return self

        async def __aenter__(self):
            if who == "passes the gates" and not is_there:
                is_there.append(self)
                await anyio.sleep(60)

        async def __aexit__(self, *_error):
            pass

    async def mute(_scope, receive, _send):
        await receive()
        is_there.append(who)
        await anyio.sleep(60)

    guard = Guard(Settings(max_sessions=1, max_sessions_per_client=1, max_handshakes_in_progress=1), gate=Slow())
    tasks = []

    async def first():
        tasks.append(asyncio.create_task(Peer().visit(CloseCodeMiddleware(mute, guard))))
        await wait_until(lambda: is_there)

    closed_in_the_middle(first)

    async def second():
        return (await Peer().visit(CloseCodeMiddleware(Handler(), guard))).heard

    assert asyncio.run(second()) == ["accept"]
    tasks.clear()
    gc.collect()
    assert set(usage(guard).values()) == {0}


def test_sessions_loop_closed_while_another_runs_are_dropped():
    """Nobody arrives who would notice: the ticker does."""
    seen = []
    guard = Guard(Settings(max_sessions=3), observers=[seen.append])
    with Elsewhere(guard) as elsewhere:
        elsewhere.come(1)

        async def first():
            await (await ConnectedClients(guard).__aenter__()).come(2)

        closed_in_the_middle(first)
        elsewhere.portal.call(wait_until, lambda: len(guard.sessions) == 1)
        assert usage(guard)["max_sessions"] == 1
    assert [event.close for event in events_of(events.SessionClosed, seen)] == [None, None, Close(1001)]


def test_sessions_loop_closed_release_slow_gates():
    """A gate that awaits something on its way out is left alone with it; the others are not."""
    released = []

    class Slow:
        def admit(self, _session):
            return self

        async def __aenter__(self):
            pass

        async def __aexit__(self, *_error):
            released.append(self)
            await anyio.sleep(60)

    guard = Guard(Settings(max_sessions=2), gate=Slow())

    async def first():
        await (await ConnectedClients(guard).__aenter__()).come(1)

    closed_in_the_middle(first)
    asyncio.run(guard.drain(0))
    assert len(released) == 1
    assert not guard.sessions
    assert usage(guard)["max_sessions"] == 0


def test_shedding_loop_closed_in_it_sheds_in_the_next(monkeypatch):
    """As the pass over all sessions was going on."""
    guard = Guard(Settings(max_sessions=10, shed_rate=1000))
    choose, begun = ShedOrder.choose, []

    async def choose_unless_first(self, *arguments):
        if not begun:
            begun.append(self)
            await anyio.sleep_forever()
        return await choose(self, *arguments)

    monkeypatch.setattr(ShedOrder, "choose", choose_unless_first)

    async def first():
        await (await ConnectedClients(guard).__aenter__()).come(3)
        guard.update(max_sessions=1)
        await wait_until(lambda: begun)

    closed_in_the_middle(first)

    async def second():
        async with ConnectedClients(guard) as stay:
            await stay.come(3)
            guard.update(max_sessions=1)
            await wait_until(lambda: len(guard.sessions) == 1)

    asyncio.run(second())


@pytest.mark.parametrize("backend", BACKENDS)
def test_drain_loop_closed_in_it_keeps_no_next_waiting(backend):
    guard = Guard(Settings())

    async def first():
        await (await ConnectedClients(guard).__aenter__()).come(2)
        first.drain = asyncio.create_task(guard.drain(60))
        await asyncio.sleep(0.01)

    closed_in_the_middle(first)
    assert guard.draining

    async def second():
        with anyio.fail_after(10):
            await guard.drain(0)

    anyio.run(second, backend=backend)
    assert not guard.sessions
    guard.draining = False

    async def third():
        async with ConnectedClients(guard) as stay:
            await stay.come(2)
            with anyio.fail_after(10):
                await guard.drain(0)
            assert stay.codes() == [1012, 1012]

    anyio.run(third, backend=backend)


def test_lifespan_loop_closed_in_it_counts_no_more():
    guard = Guard(Settings(max_sessions=1))
    kept = []

    async def first():
        kept.append(guard.lifespan())
        await kept[0].__aenter__()

    closed_in_the_middle(first)

    async def second():
        async with guard.lifespan():
            assert len(guard._loops.lifespans) == 1
        assert not guard._loops.lifespans

    asyncio.run(second())


def test_claim_of_a_gone_loop_is_free():
    claim = Claim()

    async def take():
        return claim.take()

    first = asyncio.run(take())
    assert claim.is_lost
    second = asyncio.run(take())
    assert None not in (first, second)
    assert not claim.release(first)
    assert claim.release(second)
    assert not claim.is_lost


# A fork


def in_a_child(check):
    """Run ``check`` in a forked child; it prints what it raises."""
    child = os.fork()
    if child == 0:
        try:
            check()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("reserve", [None, {1: 0.5}])
def test_fork_child_begins_without_the_parents_sessions(reserve, capfd):
    """Neither its sessions nor its counts, nor what its event loop did; and the parent's go on."""
    gate = MaxSessions(10, reserve)
    guard = Guard(
        Settings(max_sessions=3, max_sessions_per_client=3, max_handshakes_in_progress=3, max_loop_lag=5, log_burst=1),
        gate=gate,
    )

    def check():
        assert not guard._logs.has_pending_summaries
        snapshot = guard.snapshot()
        assert (snapshot["open"], snapshot["leaving"], snapshot["draining"]) == (0, 0, False)
        assert (snapshot["errors"], snapshot["closes"], snapshot["error_groups"]) == (0, {}, [])
        assert set(usage(guard).values()) == {0}

        async def main():
            async with guard.lifespan(), ConnectedClients(guard) as stay:
                await stay.come(3)
                assert usage(guard)["max_sessions"] == 3
                await wait_until(lambda: guard._gates["max_loop_lag"].sensor.value() is not None)
                guard.update(max_sessions=1, shed_rate=1000)
                await wait_until(lambda: len(guard.sessions) == 1)
                with anyio.fail_after(10):
                    await guard.drain(0)

        asyncio.run(main())
        gc.collect()
        assert set(usage(guard).values()) == {0}

    async def parent():
        async with guard.lifespan(), ConnectedClients(guard) as stay:
            await stay.come(2)
            broken = CloseCodeMiddleware(Handler(ValueError()), guard)
            for _ in range(3):
                await Peer(client=("192.0.2.9", 1)).visit(broken)
            before = guard.snapshot()
            assert guard._ticker.is_running
            task = asyncio.create_task(guard.drain(60))
            await asyncio.sleep(0)
            in_a_child(check)
            task.cancel()
            assert guard._ticker.is_running
            after = guard.snapshot()
            assert (after["errors"], after["closes"]) == (before["errors"], before["closes"]) == (3, {1011: 3})
            assert usage(guard)["max_sessions"] == 2
        assert set(usage(guard).values()) == {0}

    asyncio.run(parent())


@pytest.mark.slow
def test_fork_while_others_count_finds_the_lock_free():
    guard = Guard(Settings(max_sessions=10))
    [gate] = guard.gate.gates
    is_over = threading.Event()

    def count():
        while not is_over.is_set():
            gate.acquire(None)
            gate.release(None)
            guard.snapshot()

    threads = [threading.Thread(target=count) for _ in range(3)]
    with switching_often():
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                in_a_child(lambda: in_threads(guard.snapshot, guard._counters.groups))
        finally:
            is_over.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("parent", ["runs", "was told"])
def test_fork_child_with_the_handler_stops_at_sigterm(parent):
    """The event loop that would drain is the parent's."""
    told = []

    def servers_own(number, _frame):
        told.append(number)

    def check():
        os.kill(os.getpid(), signal.SIGTERM)
        assert told == [signal.SIGTERM]

    async def main():
        guard = Guard(Settings())
        with drain_at_sigterm(guard):
            if parent == "was told":
                os.kill(os.getpid(), signal.SIGTERM)
            in_a_child(check)
            assert not told
            if parent == "was told":  # the parent's own drain goes on
                await wait_until(lambda: told)
                assert guard.draining

    before = signal.signal(signal.SIGTERM, servers_own)
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_after_a_loop_that_was_closed_goes_to_the_server():
    """The handler of its lifespan is still there, and would drain in an event loop that is gone."""
    told = []
    kept = []

    async def first():
        kept.append(Guard(Settings(drain_on_sigterm=True)).lifespan())
        await kept[0].__aenter__()

    before = signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    try:
        closed_in_the_middle(first)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM]


@pytest.mark.parametrize("mode", ["one process", "several processes"])
def test_fork_child_shows_no_active_sessions_of_the_parents(mode, tmp_path):
    script = f"""
import asyncio, os
if {mode!r} == "several processes":
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = {str(tmp_path)!r}
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from asgi_closecodes import Guard, Settings
from asgi_closecodes.telemetry.prometheus import PrometheusObserver
from tests.support.fakes import ConnectedClients

registry = CollectorRegistry()
observer = PrometheusObserver(registry)
guard = Guard(Settings(), observers=[observer])

def active():
    observer.sample()
    shown = registry
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        shown = CollectorRegistry()
        MultiProcessCollector(shown)
    lines = generate_latest(shown).decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("closecodes_sessions_active{{"))

async def come(count, then):
    async with ConnectedClients(guard) as stay:
        await stay.come(count)
        return then()

def fork():
    assert active() == 3
    if not (child := os.fork()):
        asyncio._set_running_loop(None)
        apart = 3 if "PROMETHEUS_MULTIPROC_DIR" in os.environ else 0
        os._exit(active() != apart or asyncio.run(come(2, active)) != 2 + apart or active() != apart)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert active() == 3

asyncio.run(come(3, fork))
assert active() == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_fork_child_gives_back_nothing_of_the_parents():
    """The parent's tasks end in the child too, when they are collected there; gates of the user's may do I/O."""
    calls = []

    class Row:
        def admit(self, _session):
            return self

        async def __aenter__(self):
            calls.append("enter")
            if len(calls) == 3:
                await anyio.sleep(60)  # the last one is passing the gates

        async def __aexit__(self, *_error):
            calls.append("exit")

    guard = Guard(Settings(max_sessions=5, max_sessions_per_client=5, max_handshakes_in_progress=5), gate=Row())
    tasks = []

    def check():
        asyncio._set_running_loop(None)
        stays.clear()
        tasks.clear()
        loop.clear()
        gc.collect()
        assert calls == ["enter"] * 3
        assert set(usage(guard).values()) == {0}
        assert asyncio.run(visit()) == ["accept"]
        assert set(usage(guard).values()) == {0}

    async def visit():
        return (await Peer().visit(CloseCodeMiddleware(Handler(), guard))).heard

    async def parent():
        stay = await ConnectedClients(guard).__aenter__()
        stays.append(stay)
        await stay.come(2)
        tasks.append(asyncio.create_task(visit()))
        await wait_until(lambda: len(calls) == 3)

    stays, loop = [], [asyncio.new_event_loop()]
    loop[0].set_exception_handler(lambda *_: None)
    loop[0].run_until_complete(parent())
    in_a_child(check)
    assert usage(guard)["max_sessions"] == 3
    loop[0].close()


# Threads


@pytest.mark.anyio
@pytest.mark.parametrize("shape", ["a limit is lowered", "the first limit is set"])
async def test_update_from_a_plain_thread_reaches_open_sessions(shape):
    guard = Guard(Settings(max_sessions=400 if shape == "a limit is lowered" else None, shed_rate=100_000))
    async with ConnectedClients(guard) as stay:
        await stay.come(40)
        thread = threading.Thread(target=lambda: guard.update(max_sessions=1))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        await wait_until(lambda: len(guard.sessions) == 1)


def test_update_from_to_thread_reaches_open_sessions():
    guard = Guard(Settings(shed_rate=100_000))

    async def main():
        async with ConnectedClients(guard) as stay:
            await stay.come(40)
            await asyncio.to_thread(guard.update, max_sessions=1)
            await wait_until(lambda: len(guard.sessions) == 1)

    asyncio.run(main())


def test_update_concurrent_loses_none():
    guard = Guard(Settings())
    names = ("max_sessions", "max_sessions_per_client", "max_handshakes_in_progress")
    with switching_often():
        for number in range(1, 31):
            in_threads(*(lambda name=name, number=number: guard.update(**{name: number}) for name in names))
            assert [getattr(guard.settings, name) for name in names] == [number] * 3
            assert [guard._gates[name].limit for name in names] == [number] * 3


STEPS = ["gates_of", "set_limits", "Rules", "logs", "round_shedders", "name_gates"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fails", ["once", "always", "at its end"])
def test_update_step_fails_changes_nothing(monkeypatch, step, fails):
    """All or none, whatever raises."""
    guard = Guard(Settings(max_sessions=5, max_sessions_per_client=2, log_burst=7, shadow="max_sessions"))
    rules, gates = guard.rules, guard._gates
    where, name = (guard._logs, "configure") if step == "logs" else (module, step)
    works = getattr(where, name)
    calls = []

    def fail(*arguments, **options):
        calls.append(step)
        if fails == "at its end" and len(calls) == 1:
            works(*arguments, **options)
        if fails == "always" or len(calls) == 1:
            raise MemoryError
        return works(*arguments, **options)

    monkeypatch.setattr(where, name, fail)
    before = guard.settings
    with pytest.raises(MemoryError):
        guard.update(max_sessions=6, max_sessions_per_client=3, log_burst=8, when_client_full="replace_oldest")
    assert guard.settings is before
    assert guard.rules == rules
    if not (step == "set_limits" and fails == "at its end") and fails != "always":
        assert guard._logs._limits[0] == 7
    assert guard._gates == gates
    assert guard._gates["max_sessions"].limit == 5
    assert guard._gates["max_sessions_per_client"].limit == 2
    assert guard._gates["max_sessions_per_client"].when_full == "refuse"


def failed(number):
    error = ValueError()
    return events.SessionFailed(FACTS, f"{number:08x}", f"fp{number % 40}", error, Close(1011), True)


@pytest.mark.slow
def test_update_and_snapshot_while_errors_happen_never_raise():
    """The tables of errors change in the event loop, and are read and rebuilt in other threads."""
    guard = Guard(Settings(log_burst=1))
    is_over = threading.Event()
    done = [0, 0]

    def fail():
        number = 0
        while not is_over.is_set():
            guard.report(failed(random.randrange(3000)))
            guard.report(events.SessionShed(FACTS, Close(1011), f"c{number}", 1.0))
            number += 1

    def update():
        for number in range(250):
            guard.update(log_burst=1 + number % 7)
            done[0] += 1
        is_over.set()

    def look():
        while not is_over.is_set():
            guard.snapshot()
            guard.snapshot()
            done[1] += 1

    logger = logging.getLogger("asgi_closecodes")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    error_logger = logging.getLogger("asgi_closecodes.error")
    handler = logging.NullHandler()
    error_logger.addHandler(handler)
    error_logger.setLevel(logging.ERROR)
    error_logger.propagate = False
    try:
        with switching_often():
            in_threads(fail, fail, update, look)
    finally:
        logger.setLevel(before)
        error_logger.removeHandler(handler)
        error_logger.setLevel(logging.NOTSET)
        error_logger.propagate = True
    assert done[0] == 250


def test_look_sensor_stops_meanwhile_does_not_raise():
    guard = Guard(Settings())
    is_over = threading.Event()

    def tick():
        for _ in range(20_000):
            guard._lag.sample()
            guard._lag.stop()
        is_over.set()

    def look():
        while not is_over.is_set():
            guard.snapshot()

    with switching_often():
        in_threads(tick, look)


# Counts in several threads


def taken(gate, session, works):
    try:
        gate.acquire(*works(session))
    except TryAgainLater:
        return False
    return True


@pytest.mark.parametrize("when_full", ["refuse", "replace_oldest"])
def test_per_key_in_threads_counts_exactly(when_full):
    gate = MaxSessionsPerKey(3, when_full=when_full)
    worst = []

    def visit():
        for number in range(1500):
            session, key = FakeSession(), number % 2
            try:
                gate.acquire(key, session)
            except TryAgainLater:
                continue
            worst.append(gate.active_of(key))
            gate.release(key, session)
            gate.release(key, session)

    with switching_often():
        in_threads(*[visit] * 4)
    assert gate.active == 0
    assert not gate._sessions
    assert max(worst) <= 3


@pytest.mark.parametrize("reserve", [None, {0: 0.1}])
def test_max_sessions_in_threads_counts_exactly(reserve):
    gate = MaxSessions(3, reserve)
    worst = []

    def visit():
        for _ in range(3000):
            session = FakeSession() if reserve else None
            try:
                gate.acquire(session)
            except TryAgainLater:
                continue
            worst.append(gate.usage)
            gate.release(session)

    with switching_often():
        in_threads(*[visit] * 4)
    assert gate.usage == 0
    assert max(worst) <= 3


def test_handshakes_in_threads_count_exactly():
    gate = HandshakesInProgress(3, handshake_timeout=1e-9)
    worst = []
    is_over = threading.Event()

    def visit():
        for _ in range(2000):
            session = FakeSession()
            try:
                gate.acquire(session)
            except TryAgainLater:
                continue
            worst.append(gate.usage)
            session.answer()
        is_over.set()

    def look():
        while not is_over.is_set():
            list(gate.expired())

    with switching_often():
        in_threads(*[visit] * 4, look)
    assert gate.usage == 0
    assert max(worst) <= 3


def test_counters_in_threads_count_exactly():
    guard = Guard(Settings(log_burst=None))

    def count():
        for number in range(2000):
            guard._counters.shed(events.SessionShed(FACTS, Close(1011), f"c{number % 5}", 1.0))
            guard._counters.failed(failed(number))
            with COUNTING:
                guard._counters.closed(Close(1011))

    with switching_often():
        in_threads(*[count] * 3)
    counts = guard.snapshot()
    assert counts["errors"] == counts["closes"][1011] == sum(counts["sheds"].values()) == 6000


def test_rates_in_threads_let_no_more_through():
    rate = TokenBucket(1e-9, 500, clock=lambda: 0.0)
    queue = RetryQueue(cap=1e9, clock=lambda: 0.0, uniform=lambda low, high: 1.0)
    let_in, hints = [], []

    def take():
        for _ in range(400):
            let_in.append(rate.take())
            hints.append(queue.hint())

    with switching_often():
        in_threads(*[take] * 4)
    assert sum(let_in) == 500
    assert sorted(map(round, hints)) == list(range(2, 1602)), "each has a place of its own"


class Yielding(int):
    """A number that lets another thread run while it is compared."""

    def __lt__(self, other):
        time.sleep(0)
        return int(self) < other


def test_rate_that_is_full_in_threads_lets_no_more_through():
    rate, let_in = TokenBucket(1e-9, Yielding(500)), []
    with switching_often():
        in_threads(*[lambda: let_in.extend(rate.take() for _ in range(500))] * 8)
    assert sum(let_in) == 500


def test_log_sums_in_threads_are_exact(caplog):
    """Lines and counts add up to what happened, whichever thread counts or writes them."""
    guard = Guard(Settings(log_burst=2))
    is_over = threading.Event()

    def fail():
        for number in range(800):
            guard.report(failed(number))

    def flush_summaries():
        while not is_over.is_set():
            guard._logs.flush_summaries(now=True)

    def all_fail():
        in_threads(*[fail] * 3)
        is_over.set()

    with switching_often():
        in_threads(all_fail, flush_summaries)
    guard._logs.flush_summaries(now=True)
    records = [vars(record) for record in caplog.records]
    lines = sum(record["event.name"] == "closecodes.session.exception" for record in records)
    assert lines + sum(record.get("closecodes.error.suppressed", 0) for record in records) == 2400


# Several event loops at once


@pytest.mark.parametrize("backends", [("asyncio", "asyncio"), ("asyncio", "trio"), ("trio", "trio")])
def test_guard_in_several_loops_counts_exactly(backends):
    """Sessions come and go in threads, with a new event loop each time, while limits change."""
    guard = Guard(
        Settings(
            max_sessions=6,
            max_sessions_per_client=2,
            max_handshakes_in_progress=4,
            when_client_full="replace_oldest",
            shed_rate=1000,
            shed_grace=0.01,
        )
    )
    handler = Handler()
    app = CloseCodeMiddleware(handler, guard)

    def visits(backend, seed):
        rng = random.Random(seed)

        async def main():
            async with anyio.create_task_group() as tasks:
                for _ in range(6):
                    peer = Peer("a", "b", client=(f"192.0.2.{rng.randrange(3)}", 1))
                    tasks.start_soon(peer.visit, app)
                guard.update(max_sessions=rng.randrange(2, 7))

        for _ in range(12):
            anyio.run(main, backend=backend)

    with switching_often():
        in_threads(*(lambda backend=backend, seed=seed: visits(backend, seed) for seed, backend in enumerate(backends)))
    assert usage(guard) == {"max_sessions": 0, "max_sessions_per_client": 0, "max_handshakes_in_progress": 0}
    snapshot = guard.snapshot()
    assert (snapshot["open"], snapshot["leaving"]) == (0, 0)
    assert not guard._gates["max_sessions_per_client"]._sessions


def test_sums_over_several_loops_are_exact():
    """What was refused, has failed and was closed, as the snapshot and as an observer counts it."""
    seen = []
    guard = Guard(
        Settings(max_sessions=3, max_sessions_per_client=2, max_handshakes_in_progress=3, log_burst=1),
        gate=MaxSessionsPerKey(100, key=lambda session: session.scope["path"]),
        observers=[seen.append],
    )
    app = CloseCodeMiddleware(Handler(LookupError()), guard)

    def visits(number):
        async def main():
            for visit in range(60):
                await Peer(client=(f"192.0.2.{visit % 3}", 1)).visit(app)
                guard.snapshot()
                if visit % 10 == number:
                    guard.update(log_burst=number + 1)

        asyncio.run(main())

    with switching_often():
        in_threads(*(lambda number=number: visits(number) for number in range(4)))
    snapshot = guard.snapshot()
    assert snapshot["open"] == snapshot["leaving"] == 0
    assert set(usage(guard).values()) == {0}
    failed, refused = len(events_of(events.SessionFailed, seen)), len(events_of(events.SessionRefused, seen))
    assert failed + refused == 240
    assert snapshot["errors"] == snapshot["closes"][1011] == len(events_of(events.SessionClosed, seen)) == failed
    assert sum(snapshot["refusals"].values()) == refused


@pytest.mark.anyio
@pytest.mark.parametrize("other", BACKENDS)
async def test_shed_session_of_another_loop_ends_there(other, strays):
    guard = Guard(Settings())
    async with Elsewhere(guard, other) as elsewhere:
        await anyio.to_thread.run_sync(elsewhere.come, 1)
        [session] = guard.sessions
        with anyio.fail_after(10):
            assert await session.shed("kicked")
            assert not await session.shed("kicked")
        assert elsewhere.codes() == [1013]
    assert not guard.sessions
    assert not strays


@pytest.mark.anyio
@pytest.mark.parametrize("other", BACKENDS)
async def test_drain_ends_sessions_of_all_loops(other, strays):
    seen = []
    guard = Guard(Settings(), observers=[seen.append])
    async with Elsewhere(guard, other) as elsewhere:
        await anyio.to_thread.run_sync(elsewhere.come, 3)
        async with ConnectedClients(guard) as stay:
            await stay.come(2)
            with anyio.fail_after(10):
                await guard.drain(0)
            assert stay.codes() == [1012] * 2
            assert elsewhere.codes() == [1012] * 3
        assert [event.sessions for event in events_of(events.DrainFinished, seen)] == [5]
    assert not strays


@pytest.mark.anyio
@pytest.mark.parametrize("other", BACKENDS)
async def test_lowered_limit_sheds_sessions_of_another_loop(other, strays):
    guard = Guard(Settings(max_sessions=10, shed_rate=1000))
    async with Elsewhere(guard, other) as elsewhere:
        await anyio.to_thread.run_sync(elsewhere.come, 3)
        async with ConnectedClients(guard) as stay:
            await stay.come(2)
            guard.update(max_sessions=1, shed_order="newest")
            await wait_until(lambda: len(guard.sessions) == 1)
            assert sorted([*stay.codes(), *elsewhere.codes()], key=str) == [1013] * 4 + [None]
    assert guard.snapshot()["sheds"] == {"full": 4}
    assert not strays


@pytest.mark.anyio
@pytest.mark.parametrize("other", BACKENDS)
async def test_replaced_session_of_another_loop_ends_there(other, strays):
    guard = Guard(Settings(max_sessions_per_client=1, when_client_full="replace_oldest"))
    async with Elsewhere(guard, other) as elsewhere:
        await anyio.to_thread.run_sync(elsewhere.come, 1)
        async with ConnectedClients(guard) as stay:
            await stay.come(1)
            await wait_until(lambda: elsewhere.codes() == [1013])
            assert stay.codes() == [None]
            await wait_until(lambda: len(guard.sessions) == 1)
    assert not strays


@pytest.mark.parametrize("backends", [("asyncio", "asyncio"), ("asyncio", "trio"), ("trio", "asyncio")])
def test_ticker_loop_ends_goes_on_in_another(backends):
    """Whose sessions are left: nobody comes any more who would start it."""
    guard = Guard(Settings(max_sessions=10, shed_rate=1000))
    first, second = (Elsewhere(guard, backend) for backend in backends)
    with second:
        with first:
            first.come(1)
            assert guard._ticker.is_running
            second.come(3)
        guard._gates["max_sessions"].limit = 1  # no update, which would wake it
        second.portal.call(wait_until, lambda: len(guard.sessions) == 1)


def test_testclient_sockets_without_with_count_exactly():
    """Each has an event loop of its own."""
    guard = Guard(Settings(max_sessions=2, max_sessions_per_client=5))
    client = TestClient(CloseCodeMiddleware(Handler(), guard))
    with client.websocket_connect("/"), client.websocket_connect("/"):
        assert usage(guard)["max_sessions"] == 2
        assert len(guard._loops.known) == 2
        with client.websocket_connect("/") as third:
            assert third.receive()["code"] == 1013
    assert set(usage(guard).values()) == {0}


def test_testclient_sockets_replace_each_other():
    guard = Guard(Settings(max_sessions_per_client=1, when_client_full="replace_oldest"))
    client = TestClient(CloseCodeMiddleware(Handler(), guard))
    with client.websocket_connect("/") as first, client.websocket_connect("/"):
        message = first.receive()
        assert (message["code"], "cause=replaced" in message["reason"]) == (1013, True)
    assert set(usage(guard).values()) == {0}


# What holds sessions


@pytest.mark.anyio
async def test_order_idle_keeps_no_session_alive():
    """It is not looked at any more after the order has changed."""
    sessions = [FakeSession() for _ in range(50)]
    held = [weakref.ref(session) for session in sessions]
    activity = Activity()
    await activity.update(sessions)
    sessions.clear()
    gc.collect()
    assert not [one for one in held if one() is not None]


def test_guard_idle_keeps_no_session_alive(monkeypatch):
    monkeypatch.setattr("asgi_closecodes.guard.guard.ACTIVITY_INTERVAL_S", 0.0)
    guard = Guard(Settings(max_sessions=100, shed_order="idle"))

    async def main():
        async with ConnectedClients(guard) as stay:
            await stay.come(30)
            await wait_until(lambda: len(guard._activity._seen) == 30)
            guard.update(shed_order="newest")
            held = [weakref.ref(session) for session in guard.sessions]
        del stay
        await asyncio.sleep(0)
        gc.collect()
        assert not [one for one in held if one() is not None]

    asyncio.run(main())
