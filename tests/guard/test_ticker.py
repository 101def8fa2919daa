"""What a guard does while nobody asks it: samples, shedding, draining."""

import asyncio
import re
from contextlib import asynccontextmanager, nullcontext

import anyio
import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.events import CallbackFailed, DrainFinished, DrainStarted, SessionShed, SigtermDrainUnavailable
from asgi_closecodes.gates import AllOf, MaxSessions, Pressure
from asgi_closecodes.guard.shedding import Pace
from asgi_closecodes.naming import shown
from tests.support.asgi import Handler, Peer, of
from tests.support.fakes import Clock, Dial, Stay, until


@pytest.mark.anyio
async def test_who_is_above_a_lowered_limit_leaves_at_the_set_pace():
    seen = []
    guard = Guard(Settings(max_sessions=10, shed_rate=20), observers=[seen.append])
    async with Stay(guard) as stay:
        await stay.come(6)
        start = anyio.current_time()
        guard.update(max_sessions=1)
        await until(lambda: len(guard.sessions) == 1)
        assert anyio.current_time() - start > 0.1  # 5 at 20 a second, up to a burst
        assert stay.codes() == [None] + [1013] * 5
        assert {event.cause for event in of(SessionShed, seen)} == {"full"}
        await anyio.sleep(0.3)
        assert len(guard.sessions) == 1
    assert guard.snapshot()["sheds"] == {"full": 5}


@pytest.mark.anyio
async def test_a_limit_of_a_gate_of_one_s_own_is_followed_too():
    gate = MaxSessions(10)
    guard = Guard(Settings(shed_rate=100), gate=gate)
    async with Stay(guard) as stay:
        await stay.come(4)
        gate.limit = 2
        await until(lambda: len(guard.sessions) == 2)


@pytest.mark.anyio
async def test_nobody_is_shed_where_that_is_not_wanted():
    guard = Guard(Settings(max_sessions=10, shed_order="never"))
    async with Stay(guard) as stay:
        await stay.come(3)
        guard.update(max_sessions=1)
        await anyio.sleep(0.4)
        assert stay.codes() == [None] * 3


@pytest.mark.anyio
async def test_pressure_sheds_at_the_set_pace_until_it_falls():
    dial = Dial(0.1)
    guard = Guard(Settings(shed_rate=30), gate=Pressure(dial, 0.8, 0.6, 0.9))
    async with Stay(guard) as stay:
        await stay.come(20)
        dial.shown = 0.95
        await until(lambda: len(guard.sessions) < 20)
        dial.shown = 0.7
        await anyio.sleep(0.2)
        left = len(guard.sessions)
        assert left > 0
        await anyio.sleep(0.4)
        assert len(guard.sessions) == left
        assert guard.snapshot()["sheds"] == {"dial": 20 - left}


@pytest.mark.anyio
async def test_a_handshake_that_takes_too_long_is_closed_and_its_place_is_free():
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
async def test_a_gate_that_fails_in_the_background_is_reported_once_and_asked_again():
    seen = []
    gate = Faulty()
    guard = Guard(Settings(max_sessions=10, shed_rate=100), gate=gate, observers=[seen.append])
    async with Stay(guard) as stay:
        await stay.come(3)
        await until(lambda: gate.asked > 3)
        guard.update(max_sessions=1)
        await until(lambda: len(guard.sessions) == 1)
    assert [event.callback for event in of(CallbackFailed, seen)] == [
        "faulty.sample",
        "faulty.excess",
        "faulty.to_shed",
    ]


@pytest.mark.anyio
async def test_an_order_that_fails_is_reported_once_and_the_newest_go():
    seen = []
    guard = Guard(Settings(max_sessions=10, shed_rate=100, shed_order=lambda session: 1 / 0), observers=[seen.append])
    async with Stay(guard) as stay:
        await stay.come(3)
        guard.update(max_sessions=1)
        await until(lambda: len(guard.sessions) == 1)
        assert stay.codes()[0] is None
    assert [event.callback for event in of(CallbackFailed, seen)] == ["shed"]


@pytest.mark.anyio
async def test_nothing_runs_in_the_background_where_nothing_has_to():
    guard = Guard(Settings())
    async with Stay(guard) as stay:
        await stay.come(2)
        assert not guard._is_ticking
        guard.update(max_sessions=5)
        assert guard._is_ticking
        guard.update(max_sessions=None)
        await until(lambda: not guard._is_ticking)


@pytest.mark.anyio
async def test_it_stops_after_the_last_session_where_no_lifespan_arrives(monkeypatch):
    monkeypatch.setattr("asgi_closecodes.guard.guard.LINGER", 0.3)
    dial = Dial()
    guard = Guard(Settings(max_loop_lag=1), gate=Pressure(dial, 0.8, 0.6))
    async with Stay(guard) as stay:
        await stay.come(1)
        await until(lambda: guard._gates["max_loop_lag"].sensor.value() is not None)
    await until(lambda: not guard._is_ticking)
    assert guard._gates["max_loop_lag"].sensor.value() is None
    async with Stay(guard) as stay:
        await stay.come(1)
        assert guard._is_ticking


@pytest.mark.anyio
async def test_a_lifespan_starts_and_stops_it(monkeypatch):
    monkeypatch.setattr("asgi_closecodes.guard.guard.LINGER", 0.3)
    guard = Guard(Settings(max_loop_lag=1))
    is_up, stop = anyio.Event(), anyio.Event()

    async def app(_scope, _receive, _send):
        is_up.set()
        await stop.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(CloseCodeMiddleware(app, guard), {"type": "lifespan"}, None, None)
        await is_up.wait()
        await until(lambda: guard._gates["max_loop_lag"].sensor.value() is not None)
        stop.set()
    await until(lambda: not guard._is_ticking)


@pytest.mark.parametrize("by", ["gate", "server"])
def test_a_gate_that_awaits_the_task_that_it_cancels_keeps_no_other_from_stopping(by):
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
    assert [failure.callback for failure in of(CallbackFailed, seen)] == (["hasty.stop"] if by == "gate" else [])


@pytest.mark.anyio
async def test_a_gate_that_does_not_stop_does_not_keep_the_server(monkeypatch):
    """uvicorn waits for the end of the shutdown, however long it takes."""
    monkeypatch.setattr("asgi_closecodes.guard.guard.STOP_TIMEOUT", 0.01)
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
    [failure] = of(CallbackFailed, seen)
    assert failure.callback == "stuck.stop"
    assert isinstance(failure.exception, TimeoutError)


# Draining


@pytest.mark.anyio
async def test_a_drain_closes_everybody_evenly_and_refuses_everybody():
    seen = []
    guard = Guard(Settings(), observers=[seen.append])
    async with Stay(guard) as stay:
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
    assert of(DrainStarted, seen)[0].sessions == 10
    assert [event.sessions for event in of(DrainFinished, seen)] == [10]


@pytest.mark.anyio
async def test_a_drain_that_is_called_off_leaves_the_rest_alone_and_lets_others_in():
    seen = []
    guard = Guard(Settings(), observers=[seen.append])
    async with Stay(guard) as stay:
        await stay.come(3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guard.drain, 60)
            await until(lambda: stay.codes().count(1012) == 1)
            guard.draining = False
        await stay.come(1)
        assert sorted(stay.codes(), key=str) == [1012, None, None, None]
        assert [event.sessions for event in of(DrainFinished, seen)] == [1]
        await guard.drain(0)
        assert stay.codes() == [1012] * 4


@pytest.mark.anyio
async def test_a_drain_without_a_window_is_at_once_and_a_second_one_waits_for_the_first():
    guard = Guard(Settings())
    async with Stay(guard) as stay:
        await stay.come(1200)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guard.drain, 0)
            await anyio.sleep(0)
            await guard.drain(0)
            assert all(session.is_leaving for session in guard.sessions)
        assert set(stay.codes()) == {1012}


@pytest.mark.anyio
async def test_who_does_not_leave_by_the_deadline_leaves_then():
    guard = Guard(Settings())
    async with Stay(guard) as stay:
        await stay.come(3)
        for session in guard.sessions:
            session.shed_exempt = True
        await guard.drain(0.3)
        assert stay.codes() == [1012] * 3


@pytest.mark.anyio
async def test_a_drain_over_next_to_no_time_ends():
    guard = Guard(Settings())
    async with Stay(guard) as stay:
        await stay.come(3)
        await guard.drain(5e-324)
        assert stay.codes() == [1012] * 3


def test_a_pace_without_a_bound_is_a_number():
    clock = Clock()
    pace = Pace(clock)
    clock.now += 1
    assert pace.due(float("inf")) > 10**9


@pytest.mark.anyio
@pytest.mark.parametrize("window", [-1, float("nan"), float("inf"), 10**40, "5", True, [5]])
async def test_a_window_is_a_number_of_seconds(window):
    guard = Guard(Settings())
    with pytest.raises(ValueError, match=re.escape(f"window={shown(window)}")):
        await guard.drain(window)
    assert not guard.draining


@pytest.mark.anyio
@pytest.mark.parametrize("setting", ["max_sessions", "max_sessions_per_client"])
@pytest.mark.parametrize("close", [False, True], ids=["the peer has left", "the handler has closed"])
async def test_nobody_leaves_in_place_of_one_whose_handler_still_cleans_up(setting, close):
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

    async with Stay(guard, slow) as ended:
        await ended.come(3)
        ended.gone.set()
        await until(lambda: all(session.is_leaving for session in guard.sessions))
        async with Stay(guard) as stay:
            await stay.come(3)
            guard.update(**{setting: 3})
            await anyio.sleep(0.4)
            assert stay.codes() == [None] * 3
            assert guard.snapshot()["leaving"] == 3
            guard.update(**{setting: 2})
            await until(lambda: stay.codes() == [None, None, 1013])
        cleaned_up.set()
    assert guard.snapshot()["leaving"] == 0


@pytest.mark.anyio
async def test_nobody_leaves_in_place_of_one_who_is_leaving_already():
    guard = Guard(Settings(max_sessions=10, shed_rate=100, shed_grace=0.6))

    async def slow_to_leave(_scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await anyio.sleep_forever()

    async with Stay(guard, slow_to_leave) as stay:
        await stay.come(6)
        guard.update(max_sessions=3)
        await until(lambda: guard.snapshot()["leaving"] == 3)
        await anyio.sleep(0.3)
        assert guard.snapshot()["leaving"] == 3
        await until(lambda: len(guard.sessions) == 3)
        stay.tasks.cancel_scope.cancel()
    assert guard.snapshot()["sheds"] == {"full": 3}


@pytest.mark.anyio
async def test_a_drain_does_not_wait_for_a_handler_whose_peer_is_gone():
    guard = Guard(Settings())

    async def lingers(_scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        await anyio.sleep_forever()

    async with Stay(guard, lingers) as stay:
        await stay.come(2)
        with anyio.fail_after(5):
            await guard.drain(0)
        stay.tasks.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("wanted", [False, True])
async def test_a_signal_that_will_not_drain_is_told_once_where_no_lifespan_comes(wanted):
    seen = []
    guard = Guard(Settings(drain_on_sigterm=wanted), observers=[seen.append])
    async with Stay(guard) as stay:
        await stay.come(2)
    assert len(of(SigtermDrainUnavailable, seen)) == wanted


@pytest.mark.anyio
async def test_a_drain_that_is_cancelled_is_finished_by_the_next():
    guard = Guard(Settings())
    async with Stay(guard) as stay:
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
async def test_who_waits_in_a_gate_when_a_drain_begins_does_not_come_in():
    door = Door()
    guard = Guard(Settings(), gate=door)
    peer = Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.visit, CloseCodeMiddleware(Handler(), guard))
        await anyio.wait_all_tasks_blocked()
        await guard.drain(0)
        door.opens.set()
    assert peer.closed[0] == 1012


@pytest.mark.anyio
async def test_who_is_replaced_while_it_waits_in_a_gate_does_not_come_in():
    door = Door()
    guard = Guard(Settings(max_sessions_per_client=1, when_client_full="replace_oldest"), gate=door)
    first, second = Peer(), Peer()
    async with anyio.create_task_group() as tasks:
        for peer in (first, second):
            tasks.start_soon(peer.visit, CloseCodeMiddleware(Handler(), guard))
            await anyio.wait_all_tasks_blocked()
        door.opens.set()
    assert first.closed[1].endswith("cause=replaced")
    assert second.heard == ["accept"]


@pytest.mark.anyio
async def test_a_shadow_replaces_nobody():
    guard = Guard(Settings(max_sessions_per_client=1, when_client_full="replace_oldest", shadow="all"))
    async with Stay(guard) as stay:
        await stay.come(3)
        await anyio.sleep(0.1)
        assert len(guard.sessions) == 3
        assert stay.codes() == [None] * 3


@pytest.mark.anyio
async def test_an_async_answer_does_not_stop_the_background_work():
    class Async(Faulty):
        async def excess(self):
            return 5

    seen = []
    gate = Async()
    guard = Guard(Settings(max_sessions=10), gate=gate, observers=[seen.append])
    async with Stay(guard) as stay:
        await stay.come(1)
        await until(lambda: gate.asked > 3)
    assert "async.excess" in [event.callback for event in of(CallbackFailed, seen)]
