import itertools
import random
import time

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes import Settings
from asgi_closecodes.gates import MaxSessions
from asgi_closecodes.guard.activity import Activity
from asgi_closecodes.guard.dispatch import Dispatcher
from asgi_closecodes.guard.shed_order import ShedOrder
from asgi_closecodes.guard.shedding import Shedding
from tests.support.fakes import Clock, FakeSession

# ShedOrder


def choose(sessions, count, order="newest", failures=None):
    shed_order = ShedOrder(order, (failures if failures is not None else []).append, Activity().last_message_at)
    return anyio.run(shed_order.choose, sessions, count)


def aged(*ages, **rest):
    now = time.monotonic()
    return [FakeSession(arrived_at=now - age, **rest) for age in ages]


def test_newest_go_first_or_the_oldest():
    sessions = aged(50, 40, 30, 20)
    assert choose(sessions, 2) == [sessions[3], sessions[2]]
    assert choose(sessions, 2, "oldest") == [sessions[0], sessions[1]]


def test_important_sessions_go_last():
    unimportant, important = aged(90, 80, priority=5), aged(20, priority=0)
    assert choose([*important, *unimportant], 3) == [unimportant[1], unimportant[0], important[0]]


def test_exempt_and_young_sessions_go_after_all_others():
    young, exempt, others = aged(1), aged(20, shed_exempt=True, priority=9), aged(30, 40)
    assert choose([*young, *exempt, *others], 2) == others
    assert set(choose([*young, *exempt, *others], 4)[2:]) == {*young, *exempt}


def test_session_leaving_already_is_not_chosen_again():
    first, second = aged(20, 30)
    first.is_leaving = True
    assert choose([first, second], 2) == [second]


def test_order_of_one_s_own():
    sessions = aged(50, 40, 30)
    for number, session in enumerate(sessions):
        session.number = -number
    assert choose(sessions, 3, lambda session: session.number) == sessions[::-1]


@pytest.mark.parametrize("order", [lambda session: 1 / 0, lambda session: session, lambda: 1])
def test_order_that_fails_is_reported_and_the_newest_go(order):
    failures = []
    sessions = aged(50, 40, 30)
    assert choose(sessions, 1, order, failures) == sessions[2:]
    assert len(failures) == 1


def test_idle_go_first():
    sessions = aged(50, 40, 30)

    async def main():
        clock = Clock(time.monotonic())
        activity = Activity(clock)
        await activity.update(sessions)
        for session in sessions[1:]:
            session.message_count += 1
        clock.now += 0.01
        await activity.update(sessions)
        clock.now += 0.01
        sessions[2].message_count += 1
        await activity.update(sessions)
        return await ShedOrder("idle", print, activity.last_message_at).choose(sessions, 3)

    assert anyio.run(main) == sessions


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100), st.booleans()), max_size=40), st.integers(0, 50))
def test_shed_order_is_the_same_as_sorting_all(sessions, count):
    sessions = [aged(age, priority=priority, shed_exempt=exempt)[0] for priority, age, exempt in sessions]
    now = time.monotonic()

    def key(session):
        last = session.shed_exempt or now - session.arrived_at < 10
        return last, -session.priority, -session.arrived_at

    assert [key(one) for one in choose(sessions, count)] == [key(one) for one in sorted(sessions, key=key)[:count]]


def test_choosing_among_100_000_lets_other_tasks_run():
    """One turn of the event loop looks at a small part of them only."""
    sessions = aged(*(random.random() * 1000 for _ in range(100_000)))
    looked_at = []

    def order(session):
        looked_at.append(session)
        return session.arrived_at

    async def main():
        turns = []

        async def watch():
            while True:
                turns.append(len(looked_at))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await anyio.lowlevel.checkpoint()
            assert len(await ShedOrder(order, print, Activity().last_message_at).choose(sessions, 5)) == 5
            tasks.cancel_scope.cancel()
        assert len(looked_at) >= 100_000
        assert max(later - earlier for earlier, later in itertools.pairwise(turns)) < 2000

    anyio.run(main)


# Shedding


class Wants(MaxSessions):
    """A gate that wants sessions to leave."""

    def __init__(self, name, excess=0, to_shed=(), expired=()):
        super().__init__(1, name=name)
        self.cause = name
        self._excess, self._to_shed, self._expired = excess, to_shed, expired

    def excess(self):
        return self._excess

    def to_shed(self):
        return self._to_shed

    def expired(self):
        return self._expired


class Bench:
    """Shedding without a guard: one second for each turn."""

    def __init__(self, sessions, *gates, **settings):
        self.sessions, self.seen, self.clock = sessions, [], Clock(time.monotonic())
        self.leaving = set()
        dispatcher = Dispatcher({}, [self.seen.append])
        shed_order = ShedOrder("oldest", print, Activity().last_message_at)
        self.shedding = Shedding(sessions, self.leaving, self.leaving.add, shed_order, dispatcher, clock=self.clock)
        self.shedding.apply(Settings(**{"shed_order": "oldest", **settings}), gates, {})

    def shed(self):
        self.clock.now += 1.0
        if (rest := self.shedding.shed()) is not None:

            async def main():
                await rest()

            anyio.run(main)
        return {session: session.ended[0].cause for session in self.sessions if session.ended}


def test_shedding_without_gates_ends_nobody():
    bench = Bench(aged(50, 40))
    bench.shedding.end_expired()
    assert bench.shed() == {}
    assert not bench.shedding.is_watched()


def test_shedding_keeps_its_pace_and_names_the_gate():
    """Those that gates name go first; then those above the limit of whichever gate has most."""
    sessions = aged(*range(50, 40, -1))
    bench = Bench(sessions, Wants("less", 1, to_shed=sessions[8:9]), Wants("most", 5), shed_rate=2)
    assert bench.shed() == {sessions[8]: "less", sessions[0]: "most"}
    assert bench.leaving == {sessions[8], sessions[0]}
    assert list(bench.shed().values()) == ["most"] * 3 + ["less"]
    for _ in range(2):
        assert list(bench.shed().values()) == ["most"] * 4 + ["less"], "those that leave already count"


def test_shedding_never_ends_only_the_expired():
    sessions = aged(50, 40, 30)
    gate = Wants("gate", 3, to_shed=sessions[:1], expired=sessions[1:2])
    bench = Bench(sessions, gate, shed_order="never")
    bench.shedding.end_expired()
    assert bench.shed() == {sessions[1]: "gate"}


def test_shedding_gate_that_fails_does_not_shield_others():
    class Broken(Wants):
        def excess(self):
            raise ValueError

        def to_shed(self):
            raise ValueError

        def expired(self):
            raise ValueError

        def sample(self):
            raise ValueError

    sessions = aged(50, 40, 30)
    bench = Bench(sessions, Broken("broken"), Wants("sound", 2, expired=sessions[2:]), shed_rate=100)
    for _ in range(2):
        bench.shedding.sample()
        bench.shedding.end_expired()
        bench.shed()
    assert {session.ended[0].cause for session in sessions if session.ended} == {"sound"}
    assert len(bench.leaving) == 2
    failed = [event.callback for event in bench.seen]
    assert failed == ["broken.sample", "broken.expired", "broken.excess", "broken.to_shed"]
