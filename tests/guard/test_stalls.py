"""Who blocked the event loop: stalls are noticed by a thread, and reported by the event loop."""

import asyncio
import gc
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from inspect import currentframe

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, events
from asgi_closecodes.events import LoopStalled
from asgi_closecodes.guard import stalls
from asgi_closecodes.guard.stalls import _common_stack, _largest_agreeing, _Look, _substantial
from asgi_closecodes.logs.stack_traces import CodePosition
from tests.support.asgi import Handler, Peer, events_of
from tests.support.fakes import wait_until

pytestmark = pytest.mark.anyio

SECONDS = 0.1
THREAD = "asgi-closecodes-stalls"


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch):
    """A stall begins when a beat is due, which is sooner so."""
    monkeypatch.setattr(stalls, "_INTERVAL_S", SECONDS / 2)


class _Nobody:
    watches = ()
    seconds = 1000


def threads():
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def looks():
    """How often this event loop has been looked at in its present stall."""
    return len(stalls._watcher._watched[threading.get_ident()].looks)


def block(times=2):
    """Block until this thread has been looked at so often, and ``SECONDS`` are over for sure."""
    end = time.monotonic() + stalls._INTERVAL_S + 1.5 * SECONDS
    while looks() < times or time.monotonic() < end:
        time.sleep(0.01)


async def blocking(websocket):
    await websocket.accept()
    block()
    await websocket.close()


async def blocking_in_a_task(websocket):
    await websocket.accept()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(blocking_child)
    await websocket.close()


async def blocking_child():
    await anyio.lowlevel.checkpoint()
    block()


def blocked(seen):
    """The stalls by :func:`block`; a busy machine has others."""
    return [one for one in events_of(LoopStalled, seen) if one.function == "block"]


def guard_of(seen, **settings):
    return Guard(Settings(**{"log_stalls": SECONDS, **settings}), observers=[seen.append])


def app_of(guard, endpoint):
    return CloseCodeMiddleware(Starlette(routes=[WebSocketRoute("/rooms/{id}", endpoint)]), guard)


async def watched():
    """Return when this event loop is watched, and has said when its next beat is due."""
    await wait_until(lambda: stalls._watcher._watched.get(threading.get_ident(), _Nobody).seconds < 60.1)


async def stall_in(endpoint, guard, seen):
    """Return what is reported when a session's endpoint blocks its event loop."""
    async with guard.lifespan():
        await watched()
        before = len(blocked(seen))
        await Peer(path="/rooms/5").visit(app_of(guard, endpoint))
        await wait_until(lambda: len(blocked(seen)) > before)
    return blocked(seen)[-1]


async def test_blocking_handler_is_named_with_route_and_session():
    seen = []
    stall = await stall_in(blocking, guard_of(seen), seen)
    assert stall.duration >= SECONDS
    assert (stall.file, stall.function) == (__file__, "block")
    assert "in blocking\n    block()\n" in stall.stack
    assert "run_forever" not in stall.stack
    assert "unrolled_run" not in stall.stack
    assert re.fullmatch("[0-9a-f]{12}", stall.fingerprint)
    assert 1 <= stall.looks <= 3
    assert stall.session.route == "/rooms/{id}"
    [closed] = events_of(events.SessionClosed, seen)
    assert stall.session.id == closed.session.id


async def test_child_task_of_a_handler_tells_its_session():
    seen = []
    stall = await stall_in(blocking_in_a_task, guard_of(seen), seen)
    assert (stall.file, stall.function) == (__file__, "block")
    assert "blocking_child" in stall.stack
    assert stall.session.route == "/rooms/{id}"


async def test_stall_outside_of_sessions_has_its_line():
    seen = []
    async with guard_of(seen).lifespan():
        await watched()
        block()
        await wait_until(lambda: blocked(seen))
    [stall] = blocked(seen)
    assert (stall.file, stall.function, stall.session) == (__file__, "block", None)


async def test_stall_longer_than_the_linger_is_reported(monkeypatch):
    """Nor does it end the watch: an event loop that stood still was used all the time."""
    monkeypatch.setattr(stalls, "LINGER_S", 2 * SECONDS)
    seen = []
    async with guard_of(seen).lifespan():
        await watched()
        block()
        await wait_until(lambda: blocked(seen))
        await watched()
        block()
        await wait_until(lambda: len(blocked(seen)) == 2)


async def test_last_session_that_stalls_for_long_is_reported(monkeypatch):
    """Without a lifespan, where nobody is left when the event loop goes on."""
    monkeypatch.setattr(stalls, "LINGER_S", 2 * SECONDS)
    seen = []

    async def blocking_after_a_beat(websocket):
        await websocket.accept()
        await watched()
        await anyio.sleep(2 * stalls._INTERVAL_S)
        block()

    await Peer(path="/rooms/5").visit(app_of(guard_of(seen), blocking_after_a_beat))
    await wait_until(lambda: blocked(seen))


async def test_log_of_a_stall_of_an_ended_session_has_its_route(caplog):
    """Without observers, for whom facts are made at once; the session is over before the next beat."""

    async def blocking_last(websocket):
        await websocket.accept()
        await watched()
        await websocket.close()
        block()

    guard = Guard(Settings(log_stalls=SECONDS))

    def stall_records():
        return [one for one in caplog.records if vars(one).get("event.name") == "closecodes.loop.stalled"]

    async def nothing():
        """Wait for nothing, so that all the rest is done in one turn."""

    async with guard.lifespan():
        await watched()
        await Peer(path="/rooms/5", point=nothing).visit(app_of(guard, blocking_last))
        await wait_until(lambda: any(vars(one)["code.function.name"] == "block" for one in stall_records()))
    [stall] = [one for one in stall_records() if vars(one)["code.function.name"] == "block"]
    assert vars(stall)["http.route"] == "/rooms/{id}"


async def test_equal_stalls_have_one_fingerprint():
    seen = []
    guard = guard_of(seen)
    for _ in range(2):
        await stall_in(blocking, guard, seen)
    await stall_in(blocking_in_a_task, guard, seen)
    fingerprints = [one.fingerprint for one in blocked(seen)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[-1]


async def test_loop_that_is_not_late_reports_nothing():
    guard = guard_of(seen := [], log_stalls=60)
    async with guard.lifespan():
        await watched()
        time.sleep(0.05)
        await anyio.sleep(0.25)
    assert not events_of(LoopStalled, seen)


async def test_stall_watch_without_the_setting_has_no_thread():
    guard = guard_of(seen := [], log_stalls=None)
    async with guard.lifespan():
        await anyio.sleep(0.25)
        assert threading.get_ident() not in stalls._watcher._watched
    assert not events_of(LoopStalled, seen)


async def test_thread_is_one_for_all_guards_and_ends_with_the_last():
    guards = [guard_of([]) for _ in range(3)]
    async with guards[0].lifespan(), guards[1].lifespan(), guards[2].lifespan():
        await wait_until(lambda: len(stalls._watcher._watched.get(threading.get_ident(), _Nobody).watches) == 3)
        await wait_until(threads)
        assert len(threads()) == 1
        for guard in guards[1:]:
            guard.update(log_stalls=None)
        await anyio.sleep(0.3)
        assert len(threads()) == 1
        guards[0].update(log_stalls=None)
        await wait_until(lambda: not threads())
        guards[0].update(log_stalls=SECONDS)
        await wait_until(threads)
        guards[0].update(log_stalls=None)
        await wait_until(lambda: not threads())


async def test_two_guards_of_one_loop_report_a_stall_once():
    first, second = [], []
    guards = guard_of(first), guard_of(second)
    async with guards[0].lifespan(), guards[1].lifespan():
        await wait_until(lambda: len(stalls._watcher._watched.get(threading.get_ident(), _Nobody).watches) == 2)
        await Peer(path="/rooms/5").visit(app_of(guards[1], blocking))
        await wait_until(lambda: blocked(first + second))
        await anyio.sleep(0.5)
    assert (len(blocked(first)), len(blocked(second))) == (0, 1)  # the session's


@pytest.mark.parametrize("run", ["asyncio.run(main())", "__import__('trio').run(main)"])
def test_closed_loop_and_shutdown_end_the_thread(run):
    """A loop that ends without its lifespan, in a thread; then the interpreter, while another loop is blocked."""
    program = f"""
        import asyncio, threading, time, anyio
        from asgi_closecodes import Guard, Settings
        from asgi_closecodes.guard import stalls

        async def main():
            await Guard(Settings(log_stalls=0.05)).lifespan().__aenter__()
            while not stalls._watcher._watched:
                await anyio.sleep(0.01)

        thread = threading.Thread(target=lambda: {run})
        thread.start()
        thread.join()
        while stalls._watcher._thread is not None:
            time.sleep(0.01)
        print("ended")

        async def stay():
            await main()
            blocked.set()
            time.sleep(60)

        blocked = threading.Event()
        threading.Thread(target=lambda: {run.replace("main", "stay")}, daemon=True).start()
        blocked.wait()
        time.sleep(0.2)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


async def test_stopped_loop_is_no_stall():
    """One that runs again later, as tests and notebooks do."""

    def use():
        seen = []
        loop = asyncio.new_event_loop()
        lifespan = guard_of(seen).lifespan()
        try:
            loop.run_until_complete(lifespan.__aenter__())
            loop.run_until_complete(watched())
            began = time.monotonic()
            while threading.get_ident() in stalls._watcher._watched and time.monotonic() < began + 10:
                time.sleep(0.01)
            time.sleep(1)
            stopped_s = time.monotonic() - began
            loop.run_until_complete(watched())
            loop.run_until_complete(lifespan.__aexit__(None, None, None))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        return seen, stopped_s

    seen, stopped_s = await anyio.to_thread.run_sync(use)
    # A busy machine may make it stand still besides, for a shorter time.
    assert [stall for stall in events_of(LoopStalled, seen) if stall.duration >= stopped_s] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_fork_child_has_a_thread_of_its_own():
    program = """
        import asyncio, os, sys, time
        from asgi_closecodes import Guard, Settings, events
        from asgi_closecodes.guard import stalls

        seen = []
        guard = Guard(Settings(log_stalls=0.05), observers=[seen.append])

        async def main(fork):
            async with guard.lifespan():
                while not stalls._watcher._watched:
                    await asyncio.sleep(0.01)
                if fork:
                    return os.fork()
                time.sleep(0.5)
                while not any(isinstance(one, events.LoopStalled) for one in seen):
                    await asyncio.sleep(0.01)

        async def parent():
            async with guard.lifespan():
                while not stalls._watcher._watched:
                    await asyncio.sleep(0.01)
                thread = stalls._watcher._thread
                if not os.fork():
                    assert not stalls._watcher._watched and stalls._watcher._thread is None
                    asyncio._set_running_loop(None)
                    asyncio.run(main(False))
                    print("seen", flush=True)
                    os._exit(0)
                assert stalls._watcher._thread is thread
                os.wait()
        asyncio.run(parent())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "seen\n"), done.stderr


def test_uvloop_stall_is_without_the_loops_frames():
    uvloop = pytest.importorskip("uvloop")
    seen = []
    stall = uvloop.run(stall_in(blocking, guard_of(seen), seen))
    assert (stall.function, stall.session.route) == ("block", "/rooms/{id}")
    assert "runners.py" not in stall.stack


@pytest.mark.slow
async def test_code_that_holds_the_gil_is_seen_at_its_end():
    """The thread cannot run meanwhile: it looks once, when it may."""

    async def computing(websocket):
        await websocket.accept()
        began = time.monotonic()
        power = 1 << 16
        while time.monotonic() - began < 6 * SECONDS:  # until one call takes that long
            power, began = power * 2, time.monotonic()
            hold_the_gil(power)
        await websocket.close()

    seen = []
    guard = guard_of(seen)
    async with guard.lifespan():
        await watched()
        await Peer(path="/rooms/5").visit(app_of(guard, computing))
        await wait_until(lambda: any(one.function == "hold_the_gil" for one in events_of(LoopStalled, seen)))


def hold_the_gil(size):
    return sum(range(size))


async def test_free_threaded_python_is_told_once(monkeypatch):
    for module in (stalls, sys.modules["asgi_closecodes.guard.guard"]):
        monkeypatch.setattr(module, "CAN_LOOK", False)
    guard = guard_of(seen := [])
    guard.update(log_stalls=1)
    async with guard.lifespan():
        await anyio.sleep(0.15)
        assert threading.get_ident() not in stalls._watcher._watched
    [ignored] = events_of(events.SettingIgnored, seen)
    assert ignored.name == "log_stalls"


async def test_look_that_fails_is_reported_as_background_work(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(stalls, "_session_of", fail)
    guard = guard_of(seen := [])
    async with guard.lifespan():
        await watched()
        block(1)
        await wait_until(lambda: events_of(events.BackgroundFailed, seen))
    [failed] = events_of(events.BackgroundFailed, seen)
    assert isinstance(failed.exception, ZeroDivisionError)


async def test_sessions_of_a_watched_guard_are_not_kept():
    """The mark in a task's context, and the looks, hold no session."""
    kept = []

    class Noting(Handler):
        async def __call__(self, scope, receive, send):
            kept.append(weakref.ref(scope["extensions"]["closecodes"]))
            await super().__call__(scope, receive, send)

    guard = guard_of([])
    async with guard.lifespan():
        await watched()
        await Peer().visit(CloseCodeMiddleware(Noting(), guard))
        gc.collect()
        assert kept[0]() is None


# What looks have in common


def place(line=1, name="handle"):
    return CodePosition(_CODES[name], line, "app")


def _handle():
    return currentframe().f_code


_CODES = {name: _handle().replace(co_name=name, co_filename=f"/app/{name}.py") for name in "abcd"}
_CODES["library"] = logging.Logger.info.__code__


def look(*places):
    return _Look(tuple(place(line, name) for name, line in places), None, None)


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [([0.1, 0.1, 0.2], [0, 1, 2]), ([3.0, 0.1], [0]), ([0.1, 3.0], [1]), ([0.1], [0]), ([], [])],
)
def test_looks_that_stand_for_little_time_do_not_count(seconds, kept):
    """One behind a long call of C code finds what is done with its result."""
    given = [look(("a", 1))._replace(stands_for=one) for one in seconds]
    assert [*_substantial(given)] == [given[number] for number in kept]


def named(stack):
    return [(place.code.co_name, place.line) for place in stack]


@pytest.mark.parametrize(
    ("looked", "common"),
    [
        ([[("a", 1), ("b", 2)]], [("a", 1), ("b", 2)]),
        ([[("a", 1), ("b", 2)], [("a", 1), ("c", 3)]], [("a", 1)]),
        ([[("a", 1), ("b", 2), ("c", 3)], [("a", 1), ("b", 9), ("c", 3)]], [("a", 1), ("b", 2)]),
        ([[("a", 1)], [("a", 1), ("b", 2)]], [("a", 1)]),
        ([[("a", 1)], [("b", 1)]], []),
    ],
)
def test_common_stack_ends_where_looks_part(looked, common):
    assert named(_common_stack([look(*places) for places in looked])) == common


@pytest.mark.parametrize(
    ("looked", "chosen"),
    [
        ([[("a", 1)], [("a", 1)], [("a", 1)]], [0, 1, 2]),
        ([[("a", 1)], [("b", 1)], [("b", 1)]], [1, 2]),
        ([[("a", 1)], [("b", 1)], [("a", 1)]], [0, 2]),
        ([[("a", 1)], [("b", 1)], [("c", 1)]], [2]),
        ([[("library", 1), ("a", 1)], [("library", 1), ("b", 1)]], [1]),
    ],
)
def test_most_looks_with_code_of_the_application_count(looked, chosen):
    given = [look(*places) for places in looked]
    assert [*_largest_agreeing(given)] == [given[number] for number in chosen]
