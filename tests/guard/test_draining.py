"""A drain without a guard."""

import anyio
import pytest

from asgi_closecodes.events import DrainFinished, DrainStarted
from asgi_closecodes.exceptions import ServiceRestart
from asgi_closecodes.guard.draining import Draining
from asgi_closecodes.guard.shed_order import ShedOrder
from tests.support.fakes import Clock, Visitor, until

pytestmark = pytest.mark.anyio


class Leaver(Visitor):
    async def end(self, refusal):
        await anyio.lowlevel.checkpoint()
        self.schedule_close(refusal)


def draining(sessions, seen, clock):
    shed_order = ShedOrder("oldest", print, print, clock)
    return Draining(
        sessions, lambda: [one for one in sessions if not one.is_leaving], shed_order, seen.append, clock=clock
    )


async def test_drain_closes_as_many_as_time_has_passed():
    seen, clock = [], Clock()
    sessions = [Leaver(arrived_at=clock.now - 1000 + number) for number in range(10)]
    gate = draining(sessions, seen, clock)
    gate.check()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.drain, 10.0)
        await until(lambda: seen)
        with pytest.raises(ServiceRestart):
            gate.check()
        for count in (1, 2, 3):
            clock.now += 1.0
            await until(lambda count=count: sum(one.is_leaving for one in sessions) == count)
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
        await until(lambda: gate.is_on)
        gate.is_on = False
    gate.check()
    assert not any(one.is_leaving for one in sessions)
    await gate.drain(0)
    assert all(one.is_leaving for one in sessions)
    gate.forget()
    gate.check()
