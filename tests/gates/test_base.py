import asyncio
import threading
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, TryAgainLater
from asgi_closecodes.events import GateFailed, SessionFailed, SessionRefused
from asgi_closecodes.gates import AllOf, MaxSessions
from tests.support.asgi import Handler, Peer, events_of
from tests.support.gates_of_users import FreeSlots, Slots


class Diary:
    """Writes down what gates do, and what they report."""

    def __init__(self):
        self.lines = []
        self.events = []
        self.session = SimpleNamespace(report=self.events.append, facts=lambda: None)

    def gate(self, name, *, on_entry=None, on_release=None, entering=None):
        """Return a gate that writes down its steps, and raises what it is given."""
        diary = self.lines

        class Written:
            @asynccontextmanager
            async def admit(self, _session):
                diary.append(f"{name}?")
                if entering is not None:
                    await entering()
                if on_entry is not None:
                    raise on_entry
                diary.append(f"{name} in")
                try:
                    yield
                finally:
                    diary.append(f"{name} out")
                    if on_release is not None:
                        raise on_release

        return Written()


@pytest.fixture
def diary():
    return Diary()


async def enter(gate, diary):
    async with gate.admit(diary.session):
        diary.lines.append("session")


@pytest.mark.anyio
async def test_gates_are_entered_in_order_and_left_in_reverse(diary):
    await enter(AllOf(diary.gate("a"), diary.gate("b"), diary.gate("c")), diary)
    assert diary.lines == ["a?", "a in", "b?", "b in", "c?", "c in", "session", "c out", "b out", "a out"]
    assert diary.events == []


@pytest.mark.anyio
async def test_no_gates_admit_everybody(diary):
    await enter(AllOf(), diary)
    assert diary.lines == ["session"]


@pytest.mark.anyio
async def test_first_refusal_releases_entered_gates_and_asks_no_other(diary):
    refusal = TryAgainLater(cause="full")
    with pytest.raises(TryAgainLater) as raised:
        await enter(AllOf(diary.gate("a"), diary.gate("b", on_entry=refusal), diary.gate("c")), diary)
    assert raised.value is refusal
    assert refusal.gate == "written"
    assert diary.lines == ["a?", "a in", "b?", "a out"]
    assert diary.events == []


@pytest.mark.anyio
async def test_gate_may_name_itself_in_its_refusal(diary):
    refusal = TryAgainLater(cause="full")
    refusal.gate = "mine"
    with pytest.raises(TryAgainLater):
        await enter(AllOf(diary.gate("a", on_entry=refusal)), diary)
    assert refusal.gate == "mine"


@pytest.mark.anyio
async def test_failing_release_is_reported_and_others_are_released(diary):
    first, second = ValueError("first"), TryAgainLater(cause="late")
    gates = diary.gate("a", on_release=first), diary.gate("b"), diary.gate("c", on_release=second)
    await enter(AllOf(*gates), diary)
    assert diary.lines[-3:] == ["c out", "b out", "a out"]
    assert [(event.exception, event.step, event.gate) for event in diary.events] == [
        (second, "release", "written"),
        (first, "release", "written"),
    ]


@pytest.mark.anyio
async def test_failing_release_does_not_hide_why_the_session_ended(diary):
    error = LookupError("of the handler")
    with pytest.raises(LookupError) as raised:
        async with AllOf(diary.gate("a"), diary.gate("b", on_release=ValueError())).admit(diary.session):
            raise error
    assert raised.value is error
    assert diary.lines[-2:] == ["b out", "a out"]
    assert [type(event.exception) for event in diary.events] == [ValueError]


@pytest.mark.anyio
async def test_failing_release_after_a_refusal_leaves_the_refusal(diary):
    refusal = TryAgainLater(cause="full")
    with pytest.raises(TryAgainLater) as raised:
        await enter(AllOf(diary.gate("a", on_release=OSError()), diary.gate("b", on_entry=refusal)), diary)
    assert raised.value is refusal
    assert [event.step for event in diary.events] == ["release"]


class Careless:
    """A user's gate that means to release, and swallows."""

    @asynccontextmanager
    async def admit(self, _session):
        with suppress(Exception):
            yield


@pytest.mark.anyio
@pytest.mark.parametrize("inner", [None, Careless()])
async def test_no_gate_swallows_an_error_or_a_refusal(diary, inner):
    error = LookupError("of the handler")
    gates = [Careless(), *filter(None, [inner])]
    with pytest.raises(LookupError) as raised:
        async with AllOf(*gates).admit(diary.session):
            raise error
    assert raised.value is error
    with pytest.raises(TryAgainLater):
        await enter(AllOf(*gates, MaxSessions(0)), diary)
    assert diary.events == []


@pytest.mark.anyio
async def test_gate_that_fails_open_is_passed_and_reported(diary):
    error = ConnectionError("no redis")
    await enter(AllOf(diary.gate("a"), diary.gate("b", on_entry=error), diary.gate("c")), diary)
    assert diary.lines == ["a?", "a in", "b?", "c?", "c in", "session", "c out", "a out"]
    [event] = diary.events
    assert (event.exception, event.step, event.admitted, event.gate) == (error, "admit", True, "written")


@pytest.mark.anyio
async def test_gate_that_fails_closed_refuses(diary):
    error = ConnectionError("no redis")
    gates = diary.gate("a"), diary.gate("b", on_entry=error), diary.gate("c")
    with pytest.raises(TryAgainLater) as raised:
        await enter(AllOf(*gates, failure="closed"), diary)
    assert (raised.value.cause, raised.value.gate, raised.value.__cause__) == ("gate", "written", error)
    assert diary.lines == ["a?", "a in", "b?", "a out"]
    assert [(event.exception, event.admitted) for event in diary.events] == [(error, False)]


class Forgot:
    """What users get wrong: ``admit`` without ``asynccontextmanager``, or without ``return``."""

    def __init__(self, admit):
        self.admit = admit


async def coroutine(_session):
    pass


async def generator(_session):
    yield


def forgotten():
    made = []

    async def refuses(_session):
        raise TryAgainLater(cause="never")

    def keeps(admit):
        def admit_and_keep(session):
            made.append(admit(session))
            return made[-1]

        return admit_and_keep

    return made, {
        "returns nothing": lambda _session: None,
        "returns a boolean": lambda _session: True,
        "raises at once": lambda _session: 1 / 0,
        "takes no session": lambda: None,
        "is a coroutine": keeps(coroutine),
        "is a coroutine that refuses": keeps(refuses),
        "is a bare generator": generator,
        "is a context manager that is not async": lambda _session: threading.Lock(),
    }


@pytest.mark.anyio
@pytest.mark.parametrize("failure", ["open", "closed"])
@pytest.mark.parametrize("mistake", forgotten()[1])
async def test_gate_that_is_none_is_contained_and_reported(diary, mistake, failure):
    made, mistakes = forgotten()
    gate = AllOf(diary.gate("a"), Forgot(mistakes[mistake]), diary.gate("c"), failure=failure)
    try:
        await enter(gate, diary)
    except TryAgainLater:
        assert failure == "closed"
        assert diary.lines == ["a?", "a in", "a out"]
    else:
        assert failure == "open"
        assert diary.lines[-2:] == ["c out", "a out"]
    finally:
        for thing in made:
            thing.close()
    [event] = diary.events
    assert (event.gate, event.step, event.admitted) == ("forgot", "admit", failure == "open")


@pytest.mark.anyio
async def test_nested_gates_are_contained_one_by_one(diary):
    inner = AllOf(diary.gate("b"), diary.gate("c", on_entry=ValueError()), AllOf(diary.gate("d")))
    await enter(AllOf(diary.gate("a"), inner), diary)
    assert diary.lines[-4:] == ["session", "d out", "b out", "a out"]
    assert len(diary.events) == 1


# Cancellation


@pytest.mark.anyio
async def test_cancelled_entry_releases_entered_gates_and_propagates(diary):
    gates = diary.gate("a"), diary.gate("b"), diary.gate("c", entering=anyio.sleep_forever), diary.gate("d")
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter, AllOf(*gates), diary)
            await anyio.wait_all_tasks_blocked()
            assert diary.lines[-1] == "c?"
            scope.cancel()
    assert scope.cancelled_caught
    assert diary.lines[-3:] == ["c?", "b out", "a out"]
    assert diary.events == []


@pytest.mark.anyio
async def test_cancelled_session_releases_every_gate_and_propagates(diary):
    with anyio.CancelScope() as scope:
        async with AllOf(diary.gate("a"), diary.gate("b")).admit(diary.session):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert diary.lines[-2:] == ["b out", "a out"]
    assert diary.events == []


@pytest.mark.anyio
async def test_cancelled_release_releases_the_rest_and_propagates(diary):
    class Slow:
        @asynccontextmanager
        async def admit(self, _session):
            yield
            diary.lines.append("slow")
            await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter, AllOf(diary.gate("a"), Slow(), diary.gate("c")), diary)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert diary.lines[-3:] == ["c out", "slow", "a out"]
    assert diary.events == []


@pytest.mark.anyio
async def test_cancellation_with_a_failing_release_is_not_swallowed(diary):
    with anyio.CancelScope() as scope:
        async with AllOf(diary.gate("a"), diary.gate("b", on_release=ConnectionError())).admit(diary.session):
            scope.cancel()
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        raise AssertionError("went on")
    assert scope.cancelled_caught
    assert diary.lines[-2:] == ["b out", "a out"]
    assert len(diary.events) == 1


def test_asyncio_task_with_a_failing_release_stays_cancelled(diary):
    """A cancelled task of asyncio stays cancelled when the release of a gate fails."""

    async def main():
        async def session():
            async with AllOf(diary.gate("a", on_release=ConnectionError())).admit(diary.session):
                await asyncio.sleep(10)

        task = asyncio.create_task(session())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert len(diary.events) == 1


@pytest.mark.anyio
async def test_entry_that_a_gate_cuts_short_is_a_refusal(diary):
    with pytest.raises(TryAgainLater) as raised:
        await enter(AllOf(AtMost(), diary.gate("b", entering=anyio.sleep_forever)), diary)
    assert raised.value.cause == "gate"


# In a session


async def visit(gate, app=None, peer=None, **settings):
    events = []
    guard = Guard(Settings(**settings), gate=gate, observers=[events.append])
    return await (peer or Peer()).visit(CloseCodeMiddleware(app or Handler(), guard)), events


@pytest.mark.anyio
async def test_users_gate_refuses_with_1013_its_delay_and_its_cause():
    class OfficeHours:
        @asynccontextmanager
        async def admit(self, _session):
            raise TryAgainLater(cause="closed", retry_after=600)
            yield

    peer, events = await visit(OfficeHours())
    assert peer.heard == ["accept", "close"]
    assert peer.closed == (1013, "try again later; retry_after=600.0; cause=closed")
    [refused] = events_of(SessionRefused, events)
    assert (refused.gate, refused.cause, refused.retry_after, refused.mode) == (
        "office_hours",
        "closed",
        600,
        "close",
    )


@pytest.mark.anyio
@pytest.mark.parametrize(("failure", "code"), [("open", 1000), ("closed", 1013)])
async def test_gate_failure_setting_decides_about_a_failing_gate(diary, failure, code):
    peer, events = await visit(diary.gate("a", on_entry=ValueError()), accepts, gate_failure=failure)
    assert peer.closed[0] == code
    [failed] = events_of(GateFailed, events)
    assert failed.admitted is (failure == "open")
    assert not events_of(SessionFailed, events)


async def accepts(_scope, _receive, send):
    await send({"type": "websocket.accept"})


@pytest.mark.anyio
async def test_permit_is_given_back_after_the_close_was_sent():
    gate = MaxSessions(1)
    places = []
    peer = Peer()

    async def note_places():
        places.append((gate.usage, peer.heard[-1:]))

    peer._point = note_places
    await visit(gate, accepts, peer)
    assert places[-1] == (1, ["close"])
    assert gate.usage == 0


class Lease:
    """A user's gate that does something in the background while the session is open."""

    def __init__(self, task):
        self.task = task

    @asynccontextmanager
    async def admit(self, _session):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.task)
            yield
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_gate_may_run_tasks_of_its_own():
    peer, events = await visit(Lease(anyio.sleep_forever), accepts)
    assert peer.closed == (1000, "")
    assert not events_of(GateFailed, events)


@pytest.mark.anyio
async def test_gate_with_tasks_is_not_blamed_for_the_next_refusal():
    """A gate with tasks is not blamed for the refusal of the next gate."""
    peer, events = await visit(AllOf(Lease(anyio.sleep_forever), MaxSessions(0)))
    assert peer.closed[0] == 1013
    assert not events_of(GateFailed, events)


@pytest.mark.anyio
async def test_gate_with_a_failing_task_ends_its_session_and_reports():
    async def fails():
        raise ConnectionError("no redis")

    async with anyio.create_task_group() as server:
        server.start_soon(visit_and_note, notes := [], Lease(fails), stays)
    [(peer, events)] = notes
    assert peer.closed[0] == 1012
    assert len(events_of(GateFailed, events)) == 1


async def stays(_scope, _receive, send):
    await send({"type": "websocket.accept"})
    await anyio.sleep_forever()


async def visit_and_note(notes, gate, app):
    notes.append(await visit(gate, app))


class AtMost:
    """A user's gate that bounds the length of a session."""

    @asynccontextmanager
    async def admit(self, _session):
        with anyio.move_on_after(0.01):
            yield


@pytest.mark.anyio
async def test_gate_may_end_its_session_by_a_cancel_scope_of_its_own():
    async with anyio.create_task_group() as server:
        server.start_soon(visit_and_note, notes := [], AllOf(AtMost(), MaxSessions(1)), stays)
    [(peer, events)] = notes
    assert peer.closed[0] == 1012
    assert not events_of(GateFailed, events)


@pytest.mark.anyio
async def test_refusal_that_comes_out_of_a_task_group_is_a_refusal(diary):
    class Grouped:
        @asynccontextmanager
        async def admit(self, _session):
            async with anyio.create_task_group():
                raise TryAgainLater(cause="grouped")
            yield

    with pytest.raises(TryAgainLater) as raised:
        await enter(AllOf(Grouped()), diary)
    assert (raised.value.cause, raised.value.gate) == ("grouped", "grouped")
    assert diary.events == []


def test_exit_with_a_failing_release_is_not_swallowed(diary):
    async def main():
        async with AllOf(diary.gate("a", on_release=ConnectionError())).admit(diary.session):
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        anyio.run(main)


def test_numbers_of_a_users_gate_are_in_the_snapshot():
    gates = Guard(gate=AllOf(Slots(3), FreeSlots())).snapshot()["gates"]
    assert [(gate["name"], gate["cause"], gate["usage"], gate["limit"]) for gate in gates] == [
        ("slots", "slots", 0, 3),
        ("free_slots", "shed", 1, 2),
    ]
