"""A limit that is set while sessions are open counts them at once, and one that is unset keeps none of them."""

import asyncio
import itertools
import sys
import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_closecodes import CloseCodeMiddleware, Guard, Session, Settings
from asgi_closecodes.events import GateFailed, SessionClosed
from asgi_closecodes.gates import AllOf, MaxSessions, MaxSessionsPerKey
from asgi_closecodes.gates.base import as_gate
from tests.support.asgi import Handler, Peer, events_of
from tests.support.fakes import settle

HOSTS = ("192.0.2.1", "192.0.2.2")
NAMES = ("max_sessions", "max_sessions_per_client", "max_handshakes_in_progress")


class Door:
    """A slow gate of the user's: each session waits until it is opened for it."""

    def __init__(self):
        self.waiting = {}

    @asynccontextmanager
    async def admit(self, session):
        opened = self.waiting[session] = anyio.Event()
        try:
            await opened.wait()
        finally:
            del self.waiting[session]
        yield


class Visit:
    """A session that waits at the door, then in its handshake, then open, as it is told."""

    def __init__(self, guard, host):
        self.guard = guard
        self.host = host
        self.state = "waits"
        self.session = None
        self.answer, self.end = anyio.Event(), anyio.Event()

    async def handler(self, scope, receive, send):
        self.session = scope["extensions"]["closecodes"]
        await receive()
        await self.answer.wait()
        await send({"type": "websocket.accept"})
        await self.end.wait()

    async def run(self):
        self.scope = anyio.CancelScope()
        with self.scope:
            await Peer("x", client=(self.host, 1)).visit(CloseCodeMiddleware(self.handler, self.guard))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(0, 1)),
        st.tuples(st.just("come"), st.integers(0, 1)),
        st.tuples(st.sampled_from(["go on", "go on", "end", "cancel"]), st.integers(0, 9)),
        st.tuples(st.sampled_from(NAMES), st.sampled_from([None, None, 50, 60])),
        st.tuples(st.just("shadow"), st.sampled_from(["", "all"])),
    ),
    max_size=25,
)


def expected(visits):
    """Return what each limit counts: those that wait have passed the gates of the settings."""
    return {
        "max_sessions": len(visits),
        "max_sessions_per_client": max((sum(one.host == host for one in visits) for host in HOSTS), default=0),
        "max_handshakes_in_progress": sum(one.state != "open" for one in visits),
    }


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(steps=steps)
@settings(max_examples=60, deadline=None)
def test_limits_set_and_unset_count_exactly_at_each_step(backend, steps):
    async def main():
        door = Door()
        guard = Guard(Settings(handshake_timeout=3600), gate=door)
        visits, waiting = [], {}
        async with anyio.create_task_group() as tasks:
            for step, argument in steps:
                if step == "come":
                    visit = Visit(guard, HOSTS[argument])
                    before = set(door.waiting)
                    tasks.start_soon(visit.run)
                    await settle()
                    [session] = set(door.waiting) - before
                    waiting[visit] = session
                    visits.append(visit)
                elif step in {*NAMES, "shadow"}:
                    guard.update(**{step: argument})
                elif visits:
                    visit = visits[argument % len(visits)]
                    if step == "go on" and visit.state == "waits":
                        door.waiting[waiting[visit]].set()
                        visit.state = "answers"
                    elif step == "go on":
                        visit.answer.set()
                        visit.state = "open"
                    else:
                        visits.remove(visit)
                        if step == "cancel" or visit.state == "waits":
                            visit.scope.cancel()
                        else:
                            visit.answer.set()
                            visit.end.set()
                    await settle()
                counts = {gate["name"]: gate["usage"] for gate in guard.snapshot()["gates"]}
                del counts["door"]
                assert counts == {name: count for name, count in expected(visits).items() if name in counts}
                assert set(counts) == {name for name in NAMES if getattr(guard.settings, name) is not None}
            tasks.cancel_scope.cancel()
        assert not any(gate["usage"] for gate in guard.snapshot()["gates"])
        assert not guard.gate.entering

    anyio.run(main, backend=backend)


@asynccontextmanager
async def staying(guard, *hosts):
    """Hold an open session of each host; yields what ends them."""
    visits = [Visit(guard, host) for host in hosts]
    async with anyio.create_task_group() as tasks:
        for visit in visits:
            visit.answer.set()
            tasks.start_soon(visit.run)
        await settle()
        yield visits
        for visit in visits:
            visit.end.set()


@pytest.mark.anyio
async def test_limit_set_later_refuses_from_the_first_session_on():
    guard = Guard()
    async with staying(guard, *HOSTS):
        guard.update(max_sessions=2)
        peer = Peer("x")
        await peer.visit(CloseCodeMiddleware(Visit(guard, "").handler, guard))
        assert peer.closed[0] == 1013
    assert guard.snapshot()["gates"][0]["usage"] == 0


@pytest.mark.anyio
async def test_limit_unset_and_set_again_is_not_released_twice():
    """What the first gate held is dropped with it, whatever becomes of its sessions."""
    guard = Guard(Settings(max_sessions=9))
    [first] = guard.gate.gates
    async with staying(guard, *HOSTS):
        guard.update(max_sessions=None)
        assert guard.gate.gates == ()
        async with staying(guard, "192.0.2.9"):
            guard.update(max_sessions=9)
            [second] = guard.gate.gates
            assert (first is second, second.usage) == (False, 3)
        assert second.usage == 2
    assert second.usage == 0


@pytest.mark.anyio
async def test_limit_set_in_a_thread_counts_before_update_returns():
    guard = Guard()
    counts = []

    def change():
        guard.update(max_sessions=9, max_sessions_per_client=9)
        counts.append({gate["name"]: gate["usage"] for gate in guard.snapshot()["gates"]})

    async with staying(guard, "192.0.2.1", "192.0.2.1", "192.0.2.2"):
        thread = threading.Thread(target=change)
        thread.start()
        thread.join()
    assert counts == [{"max_sessions": 3, "max_sessions_per_client": 2}]


@pytest.mark.anyio
async def test_shadow_keeps_what_is_held():
    guard = Guard(Settings(max_sessions=9, max_sessions_per_client=9))
    async with staying(guard, "192.0.2.1", "192.0.2.1"):
        for shadow in ("all", "max_sessions", "", "all"):
            guard.update(shadow=shadow)
            assert [gate["usage"] for gate in guard.snapshot()["gates"]] == [2, 2]
    assert [gate["usage"] for gate in guard.snapshot()["gates"]] == [0, 0]


class Unreadable(MaxSessionsPerKey):
    """A gate whose key cannot be told."""

    def __init__(self):
        super().__init__(1, key=lambda session: 1 / 0)


@pytest.mark.anyio
async def test_key_that_raises_holds_nothing_and_is_told_once():
    seen = []
    guard = Guard(observers=[seen.append])
    gate = as_gate(Unreadable())
    async with staying(guard, *HOSTS):
        guard.gate.replace((gate,), guard.sessions)
        assert gate.usage == 0
    [told] = events_of(GateFailed, seen)
    assert (told.gate, type(told.exception)) == (gate.name, ZeroDivisionError)


@pytest.mark.anyio
async def test_gate_of_none_of_the_sessions_is_left_alone():
    """Those that a gate has refused, or that are over, are adopted by nobody."""
    guard = Guard(Settings(max_sessions=0))
    async with staying(guard, *HOSTS):
        guard.update(max_sessions_per_client=5)
        assert [gate["usage"] for gate in guard.snapshot()["gates"]] == [0, 0]


@pytest.mark.anyio
async def test_all_of_replace_asks_gates_not_yet_passed():
    """`AllOf.replace` asks for what a passing session has not passed."""
    first, second, third = MaxSessions(5), Door(), MaxSessions(5)
    every = AllOf(first, second, third)
    slow = every.gates[1]
    guard = Guard(gate=every)
    async with anyio.create_task_group() as tasks:
        visit = Visit(guard, "192.0.2.1")
        tasks.start_soon(visit.run)
        await settle()
        fourth = MaxSessions(5)
        guard.gate.replace((fourth, slow, third), [])
        assert (fourth.usage, third.usage) == (1, 0)
        next(iter(second.waiting.values())).set()
        await settle()
        assert (first.usage, third.usage, fourth.usage) == (1, 1, 1)
        visit.answer.set()
        visit.end.set()
    assert (third.usage, fourth.usage) == (0, 0)


@pytest.mark.anyio
async def test_permits_are_released_in_reverse_and_awaited():
    released = []

    class Plain(MaxSessions):
        def release(self, session=None):
            released.append(self.name)
            super().release(session)
            if self.name == "last":
                raise ValueError(self.name)

    class Slow:
        name = "slow"

        @asynccontextmanager
        async def admit(self, session):
            yield
            await anyio.lowlevel.checkpoint()
            released.append(self.name)

    seen = []
    gates = Plain(5, name="first"), Slow(), Plain(5, name="last")
    guard = Guard(gate=AllOf(*gates), observers=[seen.append])
    async with staying(guard, HOSTS[0]):
        assert gates[0].usage == gates[2].usage == 1
    assert released == ["last", "slow", "first"]
    assert gates[0].usage == gates[2].usage == 0
    [told] = events_of(GateFailed, seen)
    assert (told.gate, told.step) == ("last", "release")


@pytest.mark.anyio
async def test_gate_failing_after_a_change_keeps_no_permit():
    """A thread changes the gates when a session is over, and its permits are not all released yet."""

    class Failing(MaxSessions):
        def release(self, session=None):
            super().release(session)
            guard.update(max_sessions_per_client=None, max_sessions=None)
            raise ValueError

    guard = Guard(Settings(max_sessions=9, max_sessions_per_client=9), gate=Failing(5))
    limits = guard.gate.gates
    async with staying(guard, HOSTS[0]):
        assert [gate.usage for gate in limits] == [1, 1, 1]
    assert [gate.usage for gate in limits] == [0, 0, 0]


@pytest.mark.anyio
async def test_sessions_whose_gates_are_their_permits_share_them():
    """One tuple for all of them: each would take 48 bytes."""
    guard = Guard(Settings(max_sessions=9))
    async with staying(guard, *HOSTS):
        assert len({id(session.permits) for session in guard.sessions}) == 1


def in_thread(function, **options):
    thread = threading.Thread(target=function, kwargs=options)
    thread.start()
    thread.join()


@pytest.mark.anyio
async def test_limit_set_by_a_thread_is_asked_by_who_passes():
    """A session that passes the gates in its own event loop has come after the change, and is refused like others."""
    guard = Guard(gate=MaxSessionsPerKey(9, key=lambda session: in_thread(guard.update, max_sessions=0)))
    visit = Visit(guard, HOSTS[0])
    visit.answer.set()
    visit.end.set()
    peer = await Peer("x").visit(CloseCodeMiddleware(visit.handler, guard))
    assert (peer.closed[0], visit.session) == (1013, None)
    assert [gate["usage"] for gate in guard.snapshot()["gates"]] == [0, 0]
    assert not guard.gate.entering


@pytest.mark.anyio
async def test_session_asked_in_another_order_keeps_its_permits():
    """A limit that a thread sets meanwhile is the first of the gates, though this session is asked by it last."""
    changes = [{"max_sessions": 9}]

    def key_of(_session):
        while changes:
            in_thread(guard.update, **changes.pop())
        return "ann"

    gate = MaxSessionsPerKey(9, key=key_of)
    guard = Guard(gate=gate)
    async with staying(guard, HOSTS[0]):
        [limit, _] = guard.gate.gates
        assert (limit.usage, gate.active) == (1, 1)
        guard.update(max_sessions=None)
    assert gate.active == 0


@pytest.mark.anyio
@pytest.mark.parametrize("changes", [{"max_sessions": None}, {"shadow": "all"}, {"max_sessions_per_client": 5}])
async def test_change_by_a_thread_right_after_a_count_counts_exactly(changes, monkeypatch):
    guard = Guard(Settings(max_sessions=9))
    acquire = MaxSessions.acquire

    def acquire_and_change(gate, *arguments):
        monkeypatch.undo()
        acquire(gate, *arguments)
        in_thread(guard.update, **changes)

    monkeypatch.setattr(MaxSessions, "acquire", acquire_and_change)
    async with staying(guard, HOSTS[0]):
        assert {gate["usage"] for gate in guard.snapshot()["gates"]} <= {1}
        assert len(guard.snapshot()["gates"]) == len(guard.gate.gates)
    assert not any(gate["usage"] for gate in guard.snapshot()["gates"])


@pytest.mark.anyio
async def test_session_admitted_while_gates_change_is_adopted(monkeypatch):
    """It has passed all gates, and is not among the admitted ones yet."""
    guard = Guard()
    changing = threading.Thread(target=guard.update, kwargs={"max_sessions": 5})
    prepare = Session.prepare

    def prepare_while_gates_change(session):
        monkeypatch.undo()
        changing.start()
        changing.join(0.1)
        prepare(session)

    monkeypatch.setattr(Session, "prepare", prepare_while_gates_change)
    async with staying(guard, HOSTS[0]):
        changing.join()
        assert [gate["usage"] for gate in guard.snapshot()["gates"]] == [1]
    assert [gate["usage"] for gate in guard.snapshot()["gates"]] == [0]


@pytest.mark.anyio
async def test_limit_set_while_a_session_ends_counts_exactly(monkeypatch):
    """A gate adopts it while it is about to release what it held before."""
    guard = Guard()
    adopt, adopting = MaxSessions.adopt, threading.Event()
    changing = threading.Thread(target=guard.update, kwargs={"max_sessions": 5})

    def adopt_while_it_ends(gate, session):
        permit = adopt(gate, session)
        adopting.set()
        has_ended.wait(0.1)  # in vain if the end waits for the change
        return permit

    def forget_and_tell(session):
        has_ended.set()
        return forget(session)

    forget, has_ended = guard.on_closed, threading.Event()
    monkeypatch.setattr(MaxSessions, "adopt", adopt_while_it_ends)
    monkeypatch.setattr(guard, "on_closed", forget_and_tell)
    async with staying(guard, HOSTS[0]):
        changing.start()
        adopting.wait(10)
    changing.join()
    assert [gate["usage"] for gate in guard.snapshot()["gates"]] == [0]


class Stuck(MaxSessions):
    """A gate that fails as it releases a session."""

    name = "stuck"

    def release(self, *arguments):
        super().release(*arguments)
        raise ValueError


class Cancelled(MaxSessions):
    """A gate that asks a cancelled future for its result as it releases a session."""

    def release(self, *arguments):
        super().release(*arguments)
        raise asyncio.CancelledError


def test_gate_cancelled_as_it_releases_keeps_no_others_permit():
    gates = MaxSessions(5), Cancelled(5)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Peer().visit(CloseCodeMiddleware(Handler(), Guard(gate=AllOf(*gates)))))
    assert [gate.usage for gate in gates] == [0, 0]


@asynccontextmanager
async def stuck(_session):
    yield
    raise ValueError


@pytest.mark.anyio
@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize(("before", "after"), [(None, 5), (5, None)])
async def test_gate_changed_as_a_session_closes_fails_by_name(before, after, is_slow):
    def see(event):
        seen.append(event)
        if isinstance(event, SessionClosed):
            guard.update(max_sessions=after)

    gate = as_gate(SimpleNamespace(admit=stuck, name="stuck")) if is_slow else Stuck(5)
    seen, guard = [], Guard(Settings(max_sessions=before), gate=gate, observers=[see])
    await Peer().visit(CloseCodeMiddleware(Handler(), guard))
    assert [event.gate for event in events_of(GateFailed, seen)] == ["stuck"]


def test_changes_while_threads_admit_count_exactly():
    """Sessions come in three event loops while a fourth thread sets and unsets limits; then every count is right."""
    guard = Guard()
    is_over = threading.Event()
    each, come = 40, threading.Barrier(4, timeout=60)

    def serve():
        async def main():
            async with anyio.create_task_group() as tasks:
                for _ in range(each):
                    visit = Visit(guard, HOSTS[0])
                    visit.answer.set()
                    tasks.start_soon(visit.run)
                    await anyio.lowlevel.checkpoint()
                    visits.append(visit)
                await settle()
                come.wait()
                come.wait()
                for visit in visits:
                    visit.end.set()

        visits = []
        anyio.run(main)

    def change():
        for number in itertools.count():
            if is_over.is_set():
                break
            limit = None if number % 2 else 999
            guard.update(max_sessions=limit, max_sessions_per_client=limit, shadow="all" if number % 3 else "")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=serve, daemon=True) for _ in range(3)]
    changing = threading.Thread(target=change, daemon=True)
    try:
        for thread in [*threads, changing]:
            thread.start()
        come.wait()
        is_over.set()
        changing.join()
        guard.update(max_sessions=999, max_sessions_per_client=999)
        counts = [gate["usage"] for gate in guard.snapshot()["gates"]]
        come.wait()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert counts == [3 * each, 3 * each]
    assert [gate["usage"] for gate in guard.snapshot()["gates"]] == [0, 0]
    assert not guard.gate.entering
