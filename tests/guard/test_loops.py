"""One guard in several event loops, threads and processes: nothing is lost with a loop, and counts are exact."""

import asyncio
import gc
import os
import sys
import threading
import time
import weakref

import anyio
import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, events
from asgi_closecodes.gates import MaxSessions, MaxSessionsPerKey
from asgi_closecodes.token_bucket import Rate
from tests.support.asgi import Handler, Peer
from tests.support.fakes import Guest, until


@pytest.fixture
def switching():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def abandon(guard):
    """Run ``guard`` in an event loop that is closed with its tasks in it."""
    loop = asyncio.new_event_loop()

    async def begin():
        gone = asyncio.Event()
        task = loop.create_task(Guest(gone).visit(CloseCodeMiddleware(Handler(), guard)))
        while not guard.sessions:
            await asyncio.sleep(0)
        await asyncio.sleep(0.15)
        return task

    task = loop.run_until_complete(begin())
    loop.stop()
    task._log_destroy_pending = False
    for other in asyncio.all_tasks(loop):
        other._log_destroy_pending = False
    loop.close()
    return task


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_ticker_after_a_loop_that_was_closed_runs_again():
    guard = Guard(Settings(max_sessions=10, shed_rate=1000))
    kept = abandon(guard)

    async def main():
        gone = asyncio.Event()
        tasks = [asyncio.create_task(Guest(gone).visit(CloseCodeMiddleware(Handler(), guard))) for _ in range(3)]
        await until(lambda: len(guard.sessions) == 4)
        guard.update(max_sessions=2)
        await until(lambda: guard.snapshot()["sheds"])
        gone.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    del kept


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_drain_after_a_loop_that_was_closed_runs():
    guard = Guard()
    loop = asyncio.new_event_loop()

    async def begin():
        task = asyncio.create_task(Guest(asyncio.Event()).visit(CloseCodeMiddleware(Handler(), guard)))
        while not guard.sessions:
            await asyncio.sleep(0)
        draining = asyncio.create_task(guard.drain(100))
        await asyncio.sleep(0.05)
        return task, draining

    kept = loop.run_until_complete(begin())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False
    loop.close()

    async def main():
        async with asyncio.timeout(10):
            drain = asyncio.create_task(guard.drain(0))
            await asyncio.sleep(0.3)
            guard.sessions.clear()  # the dead loop's session never ends
            await drain

    asyncio.run(main())
    del kept


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ticker_after_a_fork_runs():
    guard = Guard(Settings(max_loop_lag=0.5))

    async def serve():
        async with guard.lifespan():
            await asyncio.sleep(0.25)
            return guard.look().loop_lag

    async def main():
        async with guard.lifespan():
            await asyncio.sleep(0.15)
            if not (pid := os.fork()):
                os._exit(7 if child() else 8)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def child():
        asyncio._set_running_loop(None)
        return asyncio.run(serve()) is not None

    assert asyncio.run(main()) == 7


@pytest.mark.anyio
async def test_update_from_a_plain_thread_reaches_open_sessions():
    guard = Guard(Settings(shed_rate=1000))
    gone = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(Guest(gone).visit, CloseCodeMiddleware(Handler(), guard))
        await until(lambda: len(guard.sessions) == 4)
        thread = threading.Thread(target=guard.update, kwargs={"max_sessions": 1})
        thread.start()
        await until(lambda: guard.snapshot()["sheds"].get("full") == 3)
        thread.join()
        gone.set()


def test_update_that_fails_changes_nothing(monkeypatch):
    guard = Guard(Settings(max_sessions=3))
    monkeypatch.setattr(guard._logs, "follow", lambda burst, **rest: 1 / 0 if burst == 1 else None)
    with pytest.raises(ZeroDivisionError):
        guard.update(max_sessions=7, log_burst=1)
    assert guard.settings.max_sessions == 3
    [gate] = [gate for gate in guard.gate.gates if isinstance(gate, MaxSessions)]
    assert gate.limit == 3


def in_threads(count, work):
    """Run ``work`` in so many threads; raise what one of them raised."""
    failures = []

    def run(number):
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_counts_over_several_loops_are_exact(switching):
    seen = []
    guard = Guard(
        Settings(max_sessions=3, max_sessions_per_client=2, max_handshakes_in_progress=3, log_burst=1),
        gate=MaxSessionsPerKey(100, key=lambda session: session.scope["path"]),
        observers=[seen.append],
    )
    app = CloseCodeMiddleware(Handler(LookupError()), guard)

    def work(number):
        async def main():
            for visit in range(60):
                await Peer(client=(f"192.0.2.{visit % 3}", 1)).visit(app)
                guard.snapshot()
                if visit % 10 == number:
                    guard.update(log_burst=number + 1)

        asyncio.run(main())

    in_threads(4, work)
    snapshot = guard.snapshot()
    assert snapshot["sessions"] == snapshot["leaving"] == 0
    assert [gate["active"] for gate in snapshot["gates"]] == [0] * len(snapshot["gates"])
    failed = sum(isinstance(event, events.SessionFailed) for event in seen)
    refused = sum(isinstance(event, events.SessionRefused) for event in seen)
    assert snapshot["errors"] == failed
    assert sum(snapshot["refusals"].values()) == refused
    assert failed + refused == 240


def test_two_sockets_of_a_test_client_are_two_loops():
    """Without ``with`` each has an event loop of its own."""
    guard = Guard(Settings(max_sessions_per_client=1, when_client_full="replace_oldest"))

    async def echo(websocket):
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    app = CloseCodeMiddleware(Starlette(routes=[WebSocketRoute("/", echo)]), guard)
    client = TestClient(app)
    with client.websocket_connect("/") as first, client.websocket_connect("/") as second:
        assert first.receive()["code"] == 1013
        second.send_text("x")
        assert second.receive_text() == "x"
    assert guard.snapshot()["sessions"] == 0


def test_drain_reaches_sessions_of_other_loops():
    guard = Guard()

    async def echo(websocket):
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    client = TestClient(CloseCodeMiddleware(Starlette(routes=[WebSocketRoute("/", echo)]), guard))
    with client.websocket_connect("/") as first, client.websocket_connect("/") as second:
        asyncio.run(guard.drain(0))
        assert first.receive()["code"] == second.receive()["code"] == 1012


def test_idle_order_keeps_no_session():
    """What it has noted of sessions goes with them."""

    async def main():
        guard = Guard(Settings(shed="idle"))
        peer = Peer()
        session = guard.session(peer.scope, peer.receive, peer.send)
        await guard._victims.look([session])
        reference = weakref.ref(session)
        guard.update(shed="newest")
        del session
        gc.collect()
        return reference()

    assert asyncio.run(main()) is None


class Yielding(int):
    """A number that lets another thread run while it is compared."""

    def __lt__(self, other):
        time.sleep(0)
        return int(self) < other


def test_rate_in_threads_lets_no_more_through(switching):
    rate, taken = Rate(1e-9, Yielding(500)), []
    in_threads(8, lambda _number: taken.extend(rate.take() for _ in range(500)))
    assert sum(taken) == 500


def test_updates_in_threads_lose_none(switching):
    """Two threads that change different settings both find theirs."""
    guard = Guard(Settings())

    def work(number):
        for value in range(1, 40):
            if number:
                guard.update(max_sessions=value)
                assert guard.settings.max_sessions == value
            else:
                guard.update(max_sessions_per_client=value)
                assert guard.settings.max_sessions_per_client == value

    in_threads(2, work)
