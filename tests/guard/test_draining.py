"""A drain without a guard."""

import random
from types import SimpleNamespace

import anyio
import pytest

from asgi_closecodes import Guard, Settings
from asgi_closecodes.events import DrainFinished, DrainStarted
from asgi_closecodes.exceptions import ServiceRestart
from asgi_closecodes.guard import draining as module
from asgi_closecodes.guard.draining import Draining
from asgi_closecodes.guard.shed_order import ShedOrder
from tests.support.asgi import Handler
from tests.support.fakes import Clock, ConnectedClients, FakeSession, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.jumping_clock]


class Leaver(FakeSession):
    loop = SimpleNamespace(is_here=True)
    cancelled_after = None

    async def end(self, refusal):
        await anyio.lowlevel.checkpoint()
        self.schedule_close(refusal)

    def cancel_if_over(self, patience):
        self.cancelled_after = patience


def draining(sessions, seen, clock, busy=()):
    shed_order = ShedOrder("oldest", print, print, clock)
    return Draining(
        sessions, lambda: [one for one in sessions if not one.is_leaving], busy, shed_order, seen.append, clock=clock
    )


async def test_drain_closes_as_many_as_time_has_passed():
    seen, clock = [], Clock()
    sessions = [Leaver(arrived_at=clock.now - 1000 + number) for number in range(10)]
    gate = draining(sessions, seen, clock)
    gate.check()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.drain, 10.0)
        await wait_until(lambda: seen)
        with pytest.raises(ServiceRestart):
            gate.check()
        for count in (1, 2, 3):
            clock.now += 1.0
            await wait_until(lambda count=count: sum(one.is_leaving for one in sessions) == count)
        assert [one.is_leaving for one in sessions] == [True] * 3 + [False] * 7, "in the order of the shed_order"
        clock.now += 7.0
    assert {type(refusal) for one in sessions for refusal in one.ended} == {ServiceRestart}
    assert seen == [DrainStarted(10, 10.0), DrainFinished(10, 10.0)]


async def test_drain_called_off_or_in_a_child_admits():
    seen, clock = [], Clock()
    sessions = [Leaver() for _ in range(3)]
    gate = draining(sessions, seen, clock)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.drain, 10.0)
        await wait_until(lambda: gate.is_on)
        gate.is_on = False
    gate.check()
    assert not any(one.is_leaving for one in sessions)
    await gate.drain(0)
    assert all(one.is_leaving for one in sessions)
    gate.forget()
    gate.check()


def gone(sessions):
    return [one.is_leaving for one in sessions]


async def test_patient_drain_spares_busy_sessions():
    """Those that are not busy leave at the drain's pace; then the rest does, over the window."""
    seen, clock = [], Clock()
    sessions = [Leaver(arrived_at=clock.now - 1000 + number) for number in range(6)]
    busy = set(sessions[:3])
    drain = draining(sessions, seen, clock, busy)
    assert drain.state(6) is None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain.drain, 6.0, 60.0)
        await wait_until(lambda: drain.state(6))
        assert drain.state(6) == {
            "sessions": 6, "remaining": 6, "elapsed": 0.0, "window": 6.0, "patience": 60.0, "waits_for_busy": True
        }  # fmt: skip
        clock.now += 1.0
        await wait_until(lambda: gone(sessions) == [False] * 3 + [True, False, False])
        for count in (2, 3):
            clock.now += 1.0
            await wait_until(lambda count=count: sum(gone(sessions)) == count)
        busy.discard(sessions[1])
        clock.now += 1.0
        await wait_until(lambda: gone(sessions) == [False, True, False, True, True, True])
        clock.now += 60.0
        await wait_until(lambda: not drain.state(2)["waits_for_busy"])
        assert gone(sessions)[::2] == [False, False, True], "their window begins"
        with anyio.fail_after(10):
            while not all(gone(sessions)):
                clock.now += 0.5
                await anyio.sleep(0.01)
    assert seen[0] == DrainStarted(6, 6.0, 60.0)
    assert (seen[1].sessions, seen[1].busy) == (6, 2), "of the three busy ones one was spared to its end"
    assert drain.state(0) is None


async def test_drain_without_patience_says_whom_it_cut():
    """By default a busy block delays nothing."""
    seen, clock = [], Clock()
    sessions = [Leaver() for _ in range(3)]
    await draining(sessions, seen, clock, {sessions[0]}).drain(0)
    assert seen == [DrainStarted(3, 0), DrainFinished(3, 0.0, busy=1)]


async def test_patient_drain_without_busy_ones_ends_early():
    seen, clock = [], Clock()
    drain = draining([Leaver()], seen, clock)
    await drain.drain(0, 60.0)
    assert seen == [DrainStarted(1, 0, 60.0), DrainFinished(1, 0.0)]


async def test_patient_drain_called_off_admits_again():
    seen, clock = [], Clock()
    sessions = [Leaver()]
    drain = draining(sessions, seen, clock, busy=sessions)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain.drain, 0, 60.0)
        await wait_until(lambda: seen)
        drain.is_on = False
    drain.check()
    assert gone(sessions) == [False]


async def test_patient_drain_looks_once_more_before_it_ends_one():
    """A handler that begins a call between the choice and the end keeps it."""
    seen, clock, busy = [], Clock(), set()
    session = Leaver()
    drain = draining([session], seen, clock, busy)
    choose = drain._shed_order.choose

    async def choose_and_begin(sessions, count):
        chosen = await choose(sessions, count)
        busy.update(chosen)
        return chosen

    drain._shed_order = SimpleNamespace(choose=choose_and_begin)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain.drain, 0, 60.0)
        await wait_until(lambda: session in busy)
        await anyio.sleep(0.15)
        assert not session.is_leaving
        drain._shed_order = SimpleNamespace(choose=choose)
        busy.clear()
        await wait_until(lambda: session.is_leaving)


@pytest.mark.parametrize("bad", [-1, float("inf"), float("nan"), True, "5"])
@pytest.mark.parametrize("name", ["window", "patience"])
async def test_drain_bad_seconds_are_refused_by_name(name, bad):
    drain = draining([Leaver()], [], Clock())
    with pytest.raises(ValueError, match=f"^{name}=.*: use a number of seconds, 0 or more"):
        await drain.drain(**{"window": 0.0, "patience": 0.0, name: bad})
    drain.check()


@pytest.mark.parametrize("seed", range(3))
async def test_200_calls_under_a_rolling_update_are_not_cut(seed, monkeypatch):
    """Calls of a minute in the mean, and 10 idle sessions: none is cut, and no second has too many of them."""
    chance, clock = random.Random(seed), Clock()
    left, window = [], 30.0

    class Call(Leaver):
        def schedule_close(self, refusal):
            super().schedule_close(refusal)
            left.append(clock.now)
            sessions.remove(self)
            assert calls.get(self, 0) <= clock.now, "a call was cut"

    calls = {Call(): clock.now + chance.expovariate(1 / 60) for _ in range(200)}
    sessions = [*calls, *(Call() for _ in range(10))]
    busy = {*calls}

    async def sleep(seconds):
        clock.now = round(clock.now + seconds, 6)
        for session in [one for one in busy if calls[one] <= clock.now]:
            busy.discard(session)
        for _ in range(4):
            await anyio.lowlevel.checkpoint()

    fake = SimpleNamespace(sleep=sleep, create_task_group=anyio.create_task_group, lowlevel=anyio.lowlevel)
    monkeypatch.setattr(module, "anyio", fake)
    seen = []
    longest = max(calls.values()) - clock.now
    await draining(sessions, seen, clock, busy).drain(window, longest + window)
    assert (len(left), len(sessions)) == (210, 0)
    peak = max(sum(at <= other < at + 0.999 for other in left) for at in left)
    assert peak <= 210 / window
    [_, finished] = seen
    assert finished.duration <= longest + window


# Handlers that go on although their session is over


async def go_on(scope, receive, send):
    """Wait for ever, without its peer, as Flet's does for a client that leaves before it says who it is."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass
    await anyio.sleep_forever()


async def close_and_go_on(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close"})
    await anyio.sleep_forever()


@pytest.mark.parametrize("handler", [go_on, close_and_go_on])
async def test_drain_cancels_handlers_of_sessions_that_are_over(handler):
    """Else a server waits for them for ever, and is killed before its lifespan ends."""
    guard = Guard(Settings(shed_grace=0.1))
    async with ConnectedClients(guard, handler) as stay:
        await stay.come(2)
        stay.gone.set()
        await wait_until(lambda: guard.snapshot()["leaving"] == 2)
        await guard.drain(0)
        await wait_until(lambda: not guard.sessions)
    assert guard.snapshot()["errors"] == 0


async def test_drain_lets_handlers_clean_up_for_the_grace():
    cleaned = []

    async def clean_up(scope, receive, send):
        await Handler()(scope, receive, send)
        await anyio.sleep(0.3)
        cleaned.append(scope)

    guard = Guard(Settings(shed_grace=5))
    async with ConnectedClients(guard, clean_up) as stay:
        await stay.come(2)
        stay.gone.set()
        await wait_until(lambda: guard.snapshot()["leaving"] == 2)
        await guard.drain(0)
    assert len(cleaned) == 2


async def test_drain_called_off_cancels_no_handler():
    clock, sessions = Clock(), [Leaver()]
    drain = draining(sessions, [], clock)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain.drain, 10.0)
        await wait_until(lambda: drain.is_on)
        drain.is_on = False
    assert sessions[0].cancelled_after is None


async def test_patient_drain_lets_busy_handlers_go_on():
    """A block goes on after the peer has left, for as long as others are waited for."""
    clock, sessions = Clock(), [Leaver(), Leaver()]
    for session in sessions:
        session.is_leaving = True
    await draining(sessions, [], clock, busy=sessions[:1]).drain(0, 60.0)
    assert [one.cancelled_after for one in sessions] == [60.0, 0.0]
