"""What a guard does while nobody asks it: samples, shedding, draining."""

import asyncio
import gc
import re
import signal
import warnings
from contextlib import asynccontextmanager, nullcontext

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.concurrency import running_loop
from asgi_closecodes.events import (
    BackgroundFailed,
    CallbackFailed,
    DrainFinished,
    DrainStarted,
    SessionShed,
    SigtermDrainUnavailable,
)
from asgi_closecodes.gates import AllOf, MaxSessions, Pressure
from asgi_closecodes.guard.loops import EventLoops
from asgi_closecodes.guard.shed_order import ShedOrder
from asgi_closecodes.guard.ticker import LINGER_S, TICK_S, Job, Ticker
from asgi_closecodes.naming import shown
from tests.support.asgi import Handler, Peer, events_of
from tests.support.fakes import Clock, ConnectedClients, FakeSensor, settle, wait_until

pytestmark = pytest.mark.jumping_clock


@pytest.mark.anyio
async def test_sessions_over_a_lowered_limit_leave_at_the_shed_rate():
    seen = []
    guard = Guard(Settings(max_sessions=10, shed_rate=20), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(6)
        start = anyio.current_time()
        guard.update(max_sessions=1)
        await wait_until(lambda: len(guard.sessions) == 1)
        assert anyio.current_time() - start > 0.1  # 5 at 20 a second, up to a burst
        assert stay.codes() == [None] + [1013] * 5
        assert {event.cause for event in events_of(SessionShed, seen)} == {"full"}
        await anyio.sleep(0.3)
        assert len(guard.sessions) == 1
    assert guard.snapshot()["sheds"] == {"full": 5}


@pytest.mark.anyio
async def test_limit_of_a_gate_of_one_s_own_is_followed_too():
    gate = MaxSessions(10)
    guard = Guard(Settings(shed_rate=100), gate=gate)
    async with ConnectedClients(guard) as stay:
        await stay.come(4)
        gate.limit = 2
        await wait_until(lambda: len(guard.sessions) == 2)


@pytest.mark.anyio
async def test_shed_order_off_sheds_nobody():
    guard = Guard(Settings(max_sessions=10, shed_order="never"))
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        guard.update(max_sessions=1)
        await anyio.sleep(0.4)
        assert stay.codes() == [None] * 3


@pytest.mark.anyio
async def test_pressure_sheds_at_the_set_pace_until_it_falls():
    dial = FakeSensor(0.1)
    guard = Guard(Settings(shed_rate=2), gate=Pressure(dial, 0.8, 0.6, 0.9))  # slow: a late tick makes up for a second
    async with ConnectedClients(guard) as stay:
        await stay.come(20)
        dial.shown = 0.95
        await wait_until(lambda: len(guard.sessions) < 20)
        dial.shown = 0.7
        await anyio.sleep(0.2)
        left = len(guard.sessions)
        assert left > 0
        await anyio.sleep(0.4)
        assert len(guard.sessions) == left
        assert guard.snapshot()["sheds"] == {"dial": 20 - left}


@pytest.mark.anyio
async def test_handshake_overdue_is_closed_and_its_permit_released():
    guard = Guard(Settings(max_handshakes_in_progress=1, handshake_timeout=0.2, shed_order="never"))

    async def slow(_scope, receive, _send):
        await receive()
        await anyio.sleep_forever()

    peer = Peer()
    with anyio.fail_after(10):
        guard.update(shed_grace=0.1)
        await peer.visit(CloseCodeMiddleware(slow, guard))
    assert peer.closed[0] == 1013
    assert peer.closed[1].endswith("cause=setup")
    assert all(not gate["usage"] for gate in guard.snapshot()["gates"])


class Faulty:
    """A gate whose background questions fail."""

    limit = 1
    asked = 0

    def admit(self, session):
        return MaxSessions(None).admit(session)

    def sample(self):
        self.asked += 1
        raise ValueError("the sampler")

    def excess(self):
        raise ValueError("the excess")

    def to_shed(self):
        yield from ()
        raise ValueError("the shedding")


@pytest.mark.anyio
async def test_gate_failing_in_background_is_reported_once_and_retried():
    seen = []
    gate = Faulty()
    guard = Guard(Settings(max_sessions=10, shed_rate=100), gate=gate, observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        await wait_until(lambda: gate.asked > 3)
        guard.update(max_sessions=1)
        await wait_until(lambda: len(guard.sessions) == 1)
    assert [event.callback for event in events_of(CallbackFailed, seen)] == [
        "faulty.sample",
        "faulty.excess",
        "faulty.to_shed",
    ]


@pytest.mark.anyio
async def test_order_that_fails_is_reported_once_and_the_newest_go():
    seen = []
    guard = Guard(Settings(max_sessions=10, shed_rate=100, shed_order=lambda session: 1 / 0), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        guard.update(max_sessions=1)
        await wait_until(lambda: len(guard.sessions) == 1)
        assert stay.codes()[0] is None
    assert [event.callback for event in events_of(CallbackFailed, seen)] == ["shed"]


@pytest.mark.anyio
async def test_ticker_without_need_does_not_run():
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        assert not guard._ticker.is_running
        guard.update(max_sessions=5)
        assert guard._ticker.is_running
        guard.update(max_sessions=None)
        await wait_until(lambda: not guard._ticker.is_running)


@pytest.mark.anyio
async def test_ticker_without_lifespan_stops_after_the_last_session(monkeypatch):
    monkeypatch.setattr("asgi_closecodes.guard.ticker.LINGER_S", 0.3)
    dial = FakeSensor()
    guard = Guard(Settings(max_loop_lag=1), gate=Pressure(dial, 0.8, 0.6))
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        await wait_until(lambda: guard._gates["max_loop_lag"].sensor.value() is not None)
    await wait_until(lambda: not guard._ticker.is_running)
    assert guard._gates["max_loop_lag"].sensor.value() is None
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        assert guard._ticker.is_running


@pytest.mark.anyio
async def test_lifespan_starts_and_stops_it(monkeypatch):
    monkeypatch.setattr("asgi_closecodes.guard.ticker.LINGER_S", 0.3)
    guard = Guard(Settings(max_loop_lag=1))
    is_up, stop = anyio.Event(), anyio.Event()

    async def app(_scope, _receive, _send):
        is_up.set()
        await stop.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(CloseCodeMiddleware(app, guard), {"type": "lifespan"}, None, None)
        await is_up.wait()
        await wait_until(lambda: guard._gates["max_loop_lag"].sensor.value() is not None)
        stop.set()
    await wait_until(lambda: not guard._ticker.is_running)


def test_lifespan_that_ends_leaves_no_task():
    """Its event loop may be closed by hand, which cancels none; and a user's test may look for tasks left behind."""

    async def main():
        async with guard.lifespan():
            await wait_until(lambda: guard._gates["max_loop_lag"].sensor.value() is not None)
        return asyncio.all_tasks() - {asyncio.current_task()}, guard._ticker.is_running

    guard = Guard(Settings(max_loop_lag=1))
    for _ in range(2):
        assert asyncio.run(main()) == (set(), False)


def test_lifespan_that_ends_leaves_the_ticker_to_others():
    """A session that goes on, and a second lifespan, need it."""

    async def main():
        async with guard.lifespan(), ConnectedClients(guard) as stay:
            async with guard.lifespan():
                await wait_until(lambda: guard._gates["max_loop_lag"].sensor.value() is not None)
            seen.append(guard._ticker.is_running)
            await stay.come(1)
        return asyncio.all_tasks() - {asyncio.current_task()}

    async def session():
        async with ConnectedClients(guard) as stay:
            async with guard.lifespan():
                await stay.come(1)
            seen.append(guard._ticker.is_running)

    seen = []
    guard = Guard(Settings(max_loop_lag=1))
    assert asyncio.run(main()) == set()
    asyncio.run(session())
    assert seen == [True, True]


@pytest.mark.parametrize("by", ["gate", "server"])
def test_gate_awaiting_its_cancelled_task_lets_others_stop(by):
    """Its CancelledError is nobody's cancellation; the server's is handed on."""
    seen, sent, stopped = [], [], []

    class Hasty(MaxSessions):
        async def stop(self):
            task = asyncio.ensure_future(anyio.sleep_forever())
            (task if by == "gate" else server).cancel()
            await task

    class Other(MaxSessions):
        async def stop(self):
            stopped.append(self)

    async def app(_scope, _receive, send):
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message):
        sent.append(message["type"])

    async def main():
        nonlocal server
        server = asyncio.current_task()
        await CloseCodeMiddleware(app, guard)({"type": "lifespan"}, None, send)

    server = None
    guard = Guard(Settings(), gate=AllOf(Hasty(1), Other(1)), observers=[seen.append])
    with nullcontext() if by == "gate" else pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert sent == (["lifespan.shutdown.complete"] if by == "gate" else [])
    assert len(stopped) == (by == "gate")
    assert [failure.callback for failure in events_of(CallbackFailed, seen)] == (["hasty.stop"] if by == "gate" else [])


@pytest.mark.anyio
async def test_gate_that_does_not_stop_does_not_keep_the_server(monkeypatch):
    """uvicorn waits for the end of the shutdown, however long it takes."""
    monkeypatch.setattr("asgi_closecodes.guard.gates.STOP_TIMEOUT_S", 0.01)
    seen, sent, stopped = [], [], []

    class Stuck(MaxSessions):
        async def stop(self):
            await anyio.sleep_forever()

    class Other(MaxSessions):
        async def stop(self):
            stopped.append(self)

    async def app(_scope, _receive, send):
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message):
        sent.append((message["type"], len(stopped)))

    guard = Guard(Settings(), gate=AllOf(Stuck(1), Other(1)), observers=[seen.append])
    with anyio.fail_after(5):
        await CloseCodeMiddleware(app, guard)({"type": "lifespan"}, None, send)
    assert sent == [("lifespan.shutdown.complete", 1)]
    [failure] = events_of(CallbackFailed, seen)
    assert failure.callback == "stuck.stop"
    assert isinstance(failure.exception, TimeoutError)


# Draining


@pytest.mark.anyio
async def test_drain_closes_everybody_evenly_and_refuses_everybody():
    seen = []
    guard = Guard(Settings(), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(10)
        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guard.drain, 1)
            await anyio.sleep(0.5)
            assert guard.draining
            assert 2 <= len(guard.sessions) <= 8
            refused = await Peer().visit(stay.app)
            assert refused.closed == (1012, "service restart; retry_after=1.0; cause=drain")
        assert 0.7 < anyio.current_time() - start < 2
        assert stay.codes() == [1012] * 10
    assert events_of(DrainStarted, seen)[0].sessions == 10
    assert [event.sessions for event in events_of(DrainFinished, seen)] == [10]


@pytest.mark.anyio
async def test_drain_cancelled_keeps_the_rest_and_admits_again():
    """A drain that is called off leaves the rest alone and lets others in."""
    seen = []
    guard = Guard(Settings(), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guard.drain, 60)
            await wait_until(lambda: stay.codes().count(1012) == 1)
            guard.draining = False
        await stay.come(1)
        assert sorted(stay.codes(), key=str) == [1012, None, None, None]
        assert [event.sessions for event in events_of(DrainFinished, seen)] == [1]
        await guard.drain(0)
        assert stay.codes() == [1012] * 4


@pytest.mark.anyio
async def test_drain_without_a_window_is_immediate_and_shared():
    """A drain without a window is immediate, and a second one waits for the first."""
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(1200)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guard.drain, 0)
            await anyio.sleep(0)
            await guard.drain(0)
            assert all(session.is_leaving for session in guard.sessions)
        assert set(stay.codes()) == {1012}


@pytest.mark.anyio
async def test_session_overstaying_its_deadline_is_ended():
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        for session in guard.sessions:
            session.shed_exempt = True
        await guard.drain(0.3)
        assert stay.codes() == [1012] * 3


@pytest.mark.anyio
async def test_drain_over_next_to_no_time_ends():
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        await guard.drain(5e-324)
        assert stay.codes() == [1012] * 3


@pytest.mark.anyio
@pytest.mark.parametrize("window", [-1, float("nan"), float("inf"), 10**40, "5", True, [5]])
async def test_window_is_a_number_of_seconds(window):
    guard = Guard(Settings())
    with pytest.raises(ValueError, match=re.escape(f"window={shown(window)}")):
        await guard.drain(window)
    assert not guard.draining


@pytest.mark.anyio
@pytest.mark.parametrize("setting", ["max_sessions", "max_sessions_per_client"])
@pytest.mark.parametrize("close", [False, True], ids=["the peer has left", "the handler has closed"])
async def test_shedding_counts_sessions_whose_handler_cleans_up(setting, close):
    """Nobody leaves in place of one whose handler still cleans up."""
    guard = Guard(Settings(shed_rate=1000))
    cleaned_up = anyio.Event()

    async def slow(_scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        if close:
            await send({"type": "websocket.close"})
        else:
            await receive()
        await cleaned_up.wait()

    async with ConnectedClients(guard, slow) as ended:
        await ended.come(3)
        ended.gone.set()
        await wait_until(lambda: all(session.is_leaving for session in guard.sessions))
        async with ConnectedClients(guard) as stay:
            await stay.come(3)
            guard.update(**{setting: 3})
            await anyio.sleep(0.4)
            assert stay.codes() == [None] * 3
            assert guard.snapshot()["leaving"] == 3
            guard.update(**{setting: 2})
            await wait_until(lambda: stay.codes() == [None, None, 1013])
        cleaned_up.set()
    assert guard.snapshot()["leaving"] == 0


@pytest.mark.anyio
async def test_shedding_counts_sessions_leaving_already():
    guard = Guard(Settings(max_sessions=10, shed_rate=100, shed_grace=0.6))

    async def slow_to_leave(_scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await anyio.sleep_forever()

    async with ConnectedClients(guard, slow_to_leave) as stay:
        await stay.come(6)
        guard.update(max_sessions=3)
        await wait_until(lambda: guard.snapshot()["leaving"] == 3)
        await anyio.sleep(0.3)
        assert guard.snapshot()["leaving"] == 3
        await wait_until(lambda: len(guard.sessions) == 3)
        stay.tasks.cancel_scope.cancel()
    assert guard.snapshot()["sheds"] == {"full": 3}


@pytest.mark.anyio
async def test_drain_does_not_wait_for_a_handler_whose_peer_is_gone():
    guard = Guard(Settings())

    async def lingers(_scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        await anyio.sleep_forever()

    async with ConnectedClients(guard, lingers) as stay:
        await stay.come(2)
        with anyio.fail_after(5):
            await guard.drain(0)
        stay.tasks.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("wanted", [False, True])
async def test_sigterm_drain_unavailable_is_logged_once(wanted, monkeypatch):
    """A signal that will not drain is logged once where no lifespan comes."""
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # coverage has set a handler of its own
    seen = []
    guard = Guard(Settings(drain_on_sigterm=wanted), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
    assert len(events_of(SigtermDrainUnavailable, seen)) == wanted


@pytest.mark.anyio
async def test_drain_that_is_cancelled_is_finished_by_the_next():
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        with anyio.move_on_after(0.05):
            await guard.drain(60)
        assert guard.draining
        with anyio.fail_after(5):
            await guard.drain(0)
        assert stay.codes() == [1012] * 3


class Door:
    """A gate that takes its time."""

    def __init__(self):
        self.opens = anyio.Event()

    def admit(self, session):
        return self._admit(session)

    @asynccontextmanager
    async def _admit(self, _session):
        await self.opens.wait()
        yield


@pytest.mark.anyio
async def test_session_waiting_in_a_gate_as_a_drain_begins_is_refused():
    door = Door()
    guard = Guard(Settings(), gate=door)
    peer = Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.visit, CloseCodeMiddleware(Handler(), guard))
        await settle()
        await guard.drain(0)
        door.opens.set()
    assert peer.closed[0] == 1012


@pytest.mark.anyio
async def test_session_replaced_while_waiting_in_a_gate_is_refused():
    door = Door()
    guard = Guard(Settings(max_sessions_per_client=1, when_client_full="replace_oldest"), gate=door)
    first, second = Peer(), Peer()
    async with anyio.create_task_group() as tasks:
        for peer in (first, second):
            tasks.start_soon(peer.visit, CloseCodeMiddleware(Handler(), guard))
            await settle()
        door.opens.set()
    assert first.closed[1].endswith("cause=replaced")
    assert second.heard == ["accept"]


@pytest.mark.anyio
async def test_shadow_replaces_nobody():
    guard = Guard(Settings(max_sessions_per_client=1, when_client_full="replace_oldest", shadow="all"))
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        await anyio.sleep(0.1)
        assert len(guard.sessions) == 3
        assert stay.codes() == [None] * 3


@pytest.mark.anyio
async def test_async_answer_does_not_stop_the_background_work():
    class Async(Faulty):
        async def excess(self):
            return 5

    seen = []
    gate = Async()
    guard = Guard(Settings(max_sessions=10), gate=gate, observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        await wait_until(lambda: gate.asked > 3)
    assert "async.excess" in [event.callback for event in events_of(CallbackFailed, seen)]


# The ticker alone


class Bench:
    """A ticker without a guard, whose sleep takes no time."""

    def __init__(self, *jobs, is_used=True):
        self.clock, self.loops, self.failures, self.is_used = Clock(), EventLoops(), [], is_used
        self.ticker = Ticker(
            jobs,
            self.loops,
            is_used=lambda: self.is_used,
            failed=lambda name, error: self.failures.append((name, type(error))),
            clock=self.clock,
            sleep=self.sleep,
        )

    async def sleep(self, seconds):
        self.clock.now += seconds
        await anyio.lowlevel.checkpoint()

    def tick(self, seconds=TICK_S):
        self.ticker.tick()
        self.clock.now += seconds


class Work:
    """A job's function, and its need."""

    def __init__(self, error=None, is_needed=True):
        self.runs, self.finished, self.error, self.is_needed = [], 0, error, is_needed

    def __call__(self):
        self.runs.append(running_loop())
        if self.error is not None:
            raise self.error

    def finish(self):
        self.finished += 1

    def job(self, name="a job", **rest):
        return Job(name, self, lambda: self.is_needed, finish=self.finish, **rest)


class Slow(Work):
    """One that takes many turns."""

    def __init__(self, **rest):
        super().__init__(**rest)
        self.may_end = anyio.Event()

    def __call__(self):
        super().__call__()
        return self.may_end.wait


@pytest.mark.anyio
async def test_ticker_runs_as_long_as_any_job_is_needed():
    first, second, along = Work(), Work(is_needed=False), Work()
    bench = Bench(first.job(), second.job(), Job("along", along, None))
    bench.ticker.start_if_needed()
    await wait_until(lambda: len(first.runs) > 2)
    assert bench.ticker.is_running
    assert not second.runs
    first.is_needed, second.is_needed = False, True
    await wait_until(lambda: second.runs)
    count = len(first.runs)
    second.is_needed = False
    await wait_until(lambda: not bench.ticker.is_running)
    assert len(first.runs) == count
    assert len(along.runs) == count + len(second.runs)
    assert first.finished == second.finished == 1
    bench.ticker.start_if_needed()
    assert not bench.ticker.is_running, "nothing ticks for a job that only runs along"


def test_ticker_job_has_its_own_interval():
    often, seldom = Work(), Work()
    bench = Bench(often.job(), seldom.job(interval=5.0))
    for _ in range(30):
        bench.tick(1.0)
    assert (len(often.runs), len(seldom.runs)) == (30, 6)


@pytest.mark.anyio
async def test_ticker_slow_job_holds_up_no_other():
    """Nor does it run twice at once, nor wait for another interval when it could not run at its time."""
    slow, other, seldom = Slow(), Slow(), Work()
    bench = Bench(slow.job(interval=5.0), other.job(), seldom.job(interval=5.0))
    for _ in range(12):
        bench.tick(1.0)
        await anyio.wait_all_tasks_blocked()
    assert (len(slow.runs), len(other.runs), len(seldom.runs)) == (1, 1, 3)
    slow.may_end.set()
    await anyio.wait_all_tasks_blocked()
    bench.tick()
    await anyio.wait_all_tasks_blocked()
    assert (len(slow.runs), len(other.runs)) == (2, 1)
    other.may_end.set()


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["run", "the task", "need", "finish"])
async def test_ticker_job_that_fails_is_reported_and_runs_again(where):
    broken, sound = Work(), Work()

    def fail():
        raise ValueError

    async def fail_later():
        broken.runs.append(None)
        await anyio.lowlevel.checkpoint()
        fail()

    job = broken.job("broken")
    if where == "run":
        broken.error = ValueError()
    elif where == "the task":
        job.run = lambda: fail_later
    elif where == "need":
        job.is_needed = fail
    else:
        job.finish = fail
    bench = Bench(job, sound.job())
    bench.ticker.start_if_needed()
    await wait_until(lambda: len(broken.runs) > 2 and len(sound.runs) > 2)
    job.is_needed, sound.is_needed = lambda: False, False
    await wait_until(lambda: not bench.ticker.is_running)
    assert set(bench.failures) == {("broken", ValueError)}
    assert sound.finished == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_ticker_job_with_a_cancelled_future_goes_on(is_async):
    """Nobody has cancelled the ticker."""

    async def main():
        async def awaits():
            work.runs.append(None)
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        work = Work(asyncio.CancelledError())
        job = work.job()
        if is_async:
            job.run = lambda: awaits
        bench = Bench(job)
        bench.ticker.start_if_needed()
        await wait_until(lambda: len(work.runs) > 2)
        work.is_needed = False
        await wait_until(lambda: not bench.ticker.is_running)
        assert set(bench.failures) == {("a job", asyncio.CancelledError)}

    asyncio.run(main())


def test_ticker_job_of_a_loop_that_ends_leaves_no_warning():
    """A tick may be the last thing that an event loop does: what it spawns is cancelled before its first step."""

    begun = []

    async def rest():
        begun.append(True)

    async def main():
        Bench(Job("a job", lambda: rest, None)).tick()
        [spawned] = asyncio.all_tasks() - {asyncio.current_task()}
        spawned.cancel()  # as asyncio.run() does at its end

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert not caught
    assert not begun


@pytest.mark.anyio
async def test_ticker_unused_stops_after_a_while():
    work = Work()
    bench = Bench(work.job(), is_used=False)
    start = bench.clock.now
    bench.ticker.start_if_needed()
    await wait_until(lambda: not bench.ticker.is_running)
    assert LINGER_S < bench.clock.now - start < LINGER_S + 3 * TICK_S
    assert work.finished == 1
    bench.is_used = True
    bench.ticker.start_if_needed()
    await wait_until(lambda: bench.clock.now - start > 3 * LINGER_S)
    assert bench.ticker.is_running
    work.is_needed = False
    await wait_until(lambda: not bench.ticker.is_running)


@pytest.mark.parametrize("backends", [("asyncio", "asyncio"), ("asyncio", "trio"), ("trio", "asyncio")])
def test_ticker_hands_over_to_another_loop(backends):
    """Where its own ends, and where a plain thread has it start."""
    work = Work()
    bench = Bench(work.job())
    first, second = (anyio.from_thread.start_blocking_portal(backend) for backend in backends)
    with second as second:
        bench.loops.add(there := second.call(running_loop))
        with first as first:
            bench.loops.add(here := first.call(running_loop))
            first.call(bench.ticker.start_if_needed)
            first.call(wait_until, lambda: here in work.runs)
            assert there not in work.runs
        second.call(wait_until, lambda: there in work.runs)
        for is_needed in (False, True, False):
            work.is_needed = is_needed
            bench.ticker.start_if_needed()
            second.call(wait_until, lambda is_needed=is_needed: bench.ticker.is_running == is_needed)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ticker_job_of_a_closed_loop_runs_in_the_next(backend):
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    work = Work()

    async def never_end():
        work()
        await anyio.sleep_forever()

    job = work.job()
    job.run = lambda: never_end
    bench = Bench(job)

    async def first():
        bench.ticker.start_if_needed()
        await wait_until(lambda: work.runs)

    loop.run_until_complete(first())
    assert not bench.ticker.is_running
    assert bench.ticker.is_lost
    loop.close()

    async def second():
        bench.ticker.start_if_needed()
        await wait_until(lambda: len(work.runs) == 2)
        work.is_needed = False
        await wait_until(lambda: not bench.ticker.is_running)

    anyio.run(second, backend=backend)


@pytest.mark.anyio
async def test_ticker_forgets_what_the_parent_process_runs():
    work = Slow()
    bench = Bench(work.job(interval=60.0))
    bench.ticker.start_if_needed()
    await wait_until(lambda: work.runs)
    bench.ticker.forget()
    assert not bench.ticker.is_running
    bench.tick()
    await wait_until(lambda: len(work.runs) == 2)


# Work of a guard that takes long


@pytest.mark.anyio
async def test_guard_long_shedding_looks_at_activity_meanwhile(monkeypatch):
    """A look that was due meanwhile was lost for 5 s."""
    monkeypatch.setattr("asgi_closecodes.guard.guard.ACTIVITY_INTERVAL_S", 0.0)
    guard = Guard(Settings(max_sessions=10, shed_order="idle", shed_rate=1000))
    is_shedding, may_end = anyio.Event(), anyio.Event()

    async def choose(_shed_order, _sessions, _count):
        is_shedding.set()
        await may_end.wait()
        return []

    monkeypatch.setattr(ShedOrder, "choose", choose)
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        guard.update(max_sessions=1)
        await is_shedding.wait()
        await stay.come(1)
        newest = [*guard.sessions][-1]
        await wait_until(lambda: guard._activity.last_message_at(newest) > newest.arrived_at)
        may_end.set()


@pytest.mark.anyio
async def test_guard_gate_whose_need_fails_keeps_nobody_out():
    class Unsure(MaxSessions):
        @property
        def is_watched(self):
            raise ValueError

    seen = []
    guard = Guard(Settings(), gate=Unsure(3), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        assert stay.codes() == [None] * 3
    assert {type(event.exception) for event in events_of(BackgroundFailed, seen)} == {ValueError}
