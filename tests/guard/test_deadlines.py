"""Deadlines of sessions that are dates: age, authentication, expiry; and the close of chosen ones."""

import gc
import itertools
import math
import os
import random
import threading
import time
import tracemalloc
import weakref
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from types import SimpleNamespace

import anyio
import anyio.from_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, TryAgainLater
from asgi_closecodes.events import SessionRefused, SessionShed
from asgi_closecodes.guard.deadlines import Deadlines
from asgi_closecodes.session import Session
from tests.support.asgi import Handler, Peer, events_of
from tests.support.cohort import reconnect_peak
from tests.support.every_event import FACTS
from tests.support.fakes import Clock, ConnectedClients, StayingClient, wait_until

pytestmark = pytest.mark.jumping_clock

TICK_S = 0.1


class Dated:
    """As much of a session as deadlines need."""

    def __init__(self, arrived_at, *, is_answered=True):
        self.arrived_at = arrived_at
        self.is_answered = is_answered
        self.is_leaving = False
        self.key = None
        self.loop = SimpleNamespace(call_soon=lambda call, *arguments: call(*arguments))
        self.ended, self.reported, self.answered = [], [], []

    def on_handshake_answered(self, call):
        self.answered.append(call)

    def answer(self):
        self.is_answered = True
        for call in self.answered:
            call(self)

    def schedule_close(self, refusal):
        self.is_leaving = True
        self.ended.append(refusal)

    def facts(self):
        return FACTS

    report = property(lambda self: self.reported.append)


def limits(**some):
    return SimpleNamespace(**{"max_session_age": None, "auth_timeout": None, "shadow": frozenset(), **some})


class Looking:
    """Deadlines by a clock of their own."""

    def __init__(self, **some):
        self.clock = Clock()
        self.sessions = {}
        self.deadlines = Deadlines(self.sessions, lambda: None, clock=self.clock)
        self.deadlines.apply(limits(**some))

    def come(self, count=1, **some):
        come = [Dated(self.clock.now, **some) for _ in range(count)]
        for session in come:
            self.sessions[session] = None
            self.deadlines.add(session)
        return come

    def leave(self, session):
        session.is_leaving = True
        if self.sessions.pop(session, self) is None:
            self.deadlines.discard(session)

    def entries(self):
        return len(self.deadlines._heap) + len(self.deadlines._unswept)

    async def pass_time(self, seconds, tick=TICK_S):
        for _ in range(round(seconds / tick)):
            self.clock.now += tick
            if (rest := self.deadlines.check()) is not None:
                await rest()


def causes(session):
    return [end.cause for end in session.ended]


# The heap

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["come", "set", "set", "set", "unset", "end", "close", "pass", "pass", "pass"]),
        st.integers(0, 9),
        st.floats(-1, 20),
    ),
    max_size=120,
)


@given(OPERATIONS)
def test_each_deadline_fires_once_and_none_after_the_end(operations):
    """Set, changed, unset and ended at random: none is early, none is later than a tick, and stale ones go away."""

    async def run():
        looking = Looking()
        everybody = looking.come(10)
        due = dict.fromkeys(everybody, math.inf)
        for name, place, seconds in operations:
            session = everybody[place]
            if name == "come":
                looking.leave(session)
                [everybody[place]] = looking.come()
                due[everybody[place]] = math.inf
            elif name == "set":
                looking.deadlines.set_expiry(session, timedelta(seconds=seconds))
                due[session] = looking.clock.now + seconds
            elif name == "unset":
                looking.deadlines.set_expiry(session, None)
                due[session] = math.inf
            elif name == "end":
                looking.leave(session)
            elif name == "close":
                session.is_leaving = True  # it is over a little later
            else:
                before = {session: len(session.ended) for session in due}
                open_before = {session for session in due if not session.is_leaving}
                await looking.pass_time(TICK_S if seconds < 10 else 1)
                for session in due:
                    is_due = session in open_before and due[session] <= looking.clock.now
                    expected = before[session] + (1 if is_due else 0)
                    assert len(session.ended) == expected <= 1
            assert looking.entries() <= 3 * looking.deadlines._current + 120
            assert looking.deadlines._current <= len(looking.sessions)
        await looking.pass_time(30)
        for session in due:
            assert len(session.ended) <= 1
            assert session in looking.sessions or session.is_leaving

    anyio.run(run)


@pytest.mark.anyio
async def test_stale_entries_do_not_grow_without_bound():
    """Changed for ever, or of sessions that come and go for ever."""
    looking = Looking(max_session_age=10_000)
    [stays] = looking.come()
    for number in range(5000):
        looking.deadlines.set_expiry(stays, timedelta(seconds=5000 - number / 2))
        looking.leave(looking.come()[0])
    assert looking.entries() <= 120
    await looking.pass_time(TICK_S)
    assert looking.deadlines._current == 1
    looking.leave(stays)
    assert looking.deadlines._current == 0


@pytest.mark.anyio
async def test_expiry_in_a_pause_of_the_process_is_not_early(monkeypatch):
    looking = Looking()
    [session] = looking.come()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", itertools.count(1e9).__next__)  # a second passes between two looks
        looking.deadlines.set_expiry(session, timedelta(seconds=10))
    await looking.pass_time(9.5)
    assert not session.ended
    await looking.pass_time(1)
    assert session.ended


@pytest.mark.anyio
async def test_stale_entries_swept_a_few_at_a_time_lose_none():
    """While some are swept, and others not yet, each that is due still ends in time."""
    looking = Looking()
    sessions = looking.come(3000)
    for number, session in enumerate(sessions):
        looking.deadlines.set_expiry(session, timedelta(seconds=1 + number / 1000))
    for session in sessions[::3] + sessions[1::3]:
        looking.leave(session)
    seen = set()
    while looking.deadlines._current:
        await looking.pass_time(TICK_S)
        seen.add(len(looking.deadlines._unswept))
        now = looking.clock.now - 1000
        for number, session in enumerate(sessions):
            if number % 3 == 2 and abs(now - (1 + number / 1000)) > 0.01:
                assert len(session.ended) == (now > 1 + number / 1000)
    assert len(seen) > 5
    assert not any(session.ended for session in sessions[::3] + sessions[1::3])


@pytest.mark.anyio
async def test_session_that_is_over_is_not_held_by_its_entry():
    looking = Looking(max_session_age=10_000)
    [session] = looking.come()
    gone = weakref.ref(session)
    looking.leave(session)
    del session
    gc.collect()
    assert gone() is None


@pytest.mark.anyio
async def test_deadline_that_moves_away_is_never_early():
    looking = Looking()
    [session] = looking.come()
    for _ in range(20):
        looking.deadlines.set_expiry(session, timedelta(seconds=2))
        await looking.pass_time(1)
    assert not session.ended
    await looking.pass_time(1.2)
    assert causes(session) == ["expired"]


@pytest.mark.anyio
async def test_many_due_at_once_are_ended_a_few_a_turn():
    looking = Looking()
    sessions = looking.come(1000)
    for session in sessions:
        looking.deadlines.set_expiry(session, timedelta(seconds=1))
    ended = []

    async def watch():
        while True:
            ended.append(sum(len(session.ended) for session in sessions))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await looking.pass_time(1.5)
        await wait_until(lambda: ended and ended[-1] == 1000)
        tasks.cancel_scope.cancel()
    assert max(after - before for before, after in itertools.pairwise(ended)) <= 50


# Age


@pytest.mark.anyio
async def test_age_is_drawn_from_half_of_it_to_all_of_it():
    looking = Looking(max_session_age=100)
    sessions = looking.come(2000)
    left = []
    for second in range(102):
        left += [second] * (sum(bool(session.ended) for session in sessions) - len(left))
        await looking.pass_time(1, 1)
    assert len(left) == 2000
    assert 49 <= min(left) <= 53
    assert 97 <= max(left) <= 101
    assert max(left.count(second) for second in range(102)) < 2000 / 50 * 2.2
    ends = [end for session in sessions for end in session.ended]
    assert {(end.code, end.cause, end.is_overload) for end in ends} == {(1012, "age", False)}
    hints = [end.retry_after for end in ends]
    assert 0 <= min(hints) < 0.5 < 4.5 < max(hints) <= 5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_age_of_a_cohort_spreads_its_reconnects(seed):
    """A deploy's cohort comes at the same moment; three generations come back without a peak."""
    assert reconnect_peak(random.Random(seed).random) <= 2.6


@pytest.mark.anyio
async def test_age_that_is_set_later_applies_to_open_sessions():
    """Those that are too old already leave over the next half of it, not all at once."""
    looking = Looking()
    old = looking.come(1000)
    await looking.pass_time(500, 100)
    young = looking.come(1000)
    looking.deadlines.apply(limits(max_session_age=100))
    await looking.pass_time(5, 1)
    assert 0 < sum(bool(session.ended) for session in old) < 250
    await looking.pass_time(46, 1)
    assert all(session.ended for session in old)
    await looking.pass_time(50, 1)
    assert all(len(session.ended) == 1 for session in [*old, *young])


@pytest.mark.anyio
async def test_age_that_is_unset_ends_nobody():
    looking = Looking(max_session_age=10)
    [session] = looking.come()
    await looking.pass_time(4)
    looking.deadlines.apply(limits())
    await looking.pass_time(20)
    assert not session.ended
    assert not looking.deadlines.is_needed


# Authentication


@pytest.mark.anyio
async def test_session_without_a_key_is_closed_in_time():
    looking = Looking(auth_timeout=5)
    without, authenticated, waiting = (looking.come(is_answered=number < 2)[0] for number in range(3))
    await looking.pass_time(4)
    authenticated.key = "a"
    assert not without.ended
    await looking.pass_time(1.2)
    assert [(end.code, end.reason, end.cause) for end in without.ended] == [
        (3000, "authentication timeout; cause=auth", "auth")
    ]
    await looking.pass_time(20)
    waiting.answer()  # its time begins now
    await looking.pass_time(4.8)
    assert not waiting.ended
    await looking.pass_time(0.4)
    assert causes(waiting) == ["auth"]
    await looking.pass_time(20)
    assert not authenticated.ended
    assert len(without.ended) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("is_answered", [True, False])
async def test_auth_timeout_that_changes_applies_to_open_sessions(is_answered):
    looking = Looking()
    [session] = looking.come(is_answered=is_answered)
    await looking.pass_time(60, 1)
    looking.deadlines.apply(limits(auth_timeout=20))
    session.answer()
    await looking.pass_time(10)
    looking.deadlines.apply(limits(auth_timeout=5))
    await looking.pass_time(0.1)
    assert causes(session) == ["auth"]


# In the shadow


@pytest.mark.anyio
async def test_deadline_in_the_shadow_is_reported_once_a_session():
    both = frozenset({"max_session_age", "auth_timeout", "max_sessions"})
    looking = Looking(max_session_age=10, auth_timeout=2, shadow=both)
    [session] = looking.come()
    await looking.pass_time(50)
    looking.deadlines.apply(limits(max_session_age=11, auth_timeout=2, shadow=both))
    looking.deadlines.begin_auth(session)
    await looking.pass_time(50)
    assert not session.ended
    assert all(isinstance(event, SessionRefused) for event in session.reported)
    assert [(event.gate, event.cause, event.mode, event.is_overload) for event in session.reported] == [
        ("auth_timeout", "auth", "shadow", False),
        ("max_session_age", "age", "shadow", False),
    ]
    looking.deadlines.apply(limits(max_session_age=11))
    await looking.pass_time(6)
    assert causes(session) == ["age"]


@pytest.mark.anyio
async def test_expiry_bites_whatever_is_in_the_shadow():
    looking = Looking(auth_timeout=2, shadow=frozenset({"auth_timeout"}))
    [session] = looking.come()
    looking.deadlines.set_expiry(session, timedelta(seconds=3))
    await looking.pass_time(5)
    assert (causes(session), len(session.reported)) == (["expired"], 1)


# Moments


class Undecided(tzinfo):
    def utcoffset(self, _moment):
        return None


def expiring():
    looking = Looking()
    return looking, looking.come()[0]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "moment",
    [
        lambda: timedelta(seconds=3),
        lambda: datetime.now(UTC) + timedelta(seconds=3),
        lambda: datetime.now(timezone(timedelta(hours=-11))) + timedelta(seconds=3),
        lambda: time.time() + 3,
        lambda: math.ceil(time.time()) + 3,
    ],
)
async def test_expiry_is_any_moment(moment):
    looking, session = expiring()
    given = moment()
    looking.deadlines.set_expiry(session, given)
    at = looking.deadlines.expiry_of(session)
    assert at.utcoffset() == timedelta(0)
    assert not isinstance(given, datetime) or at == given
    assert abs((at - datetime.now(UTC)).total_seconds() - 3) < 1.5
    await looking.pass_time(1.5)
    assert not session.ended
    await looking.pass_time(3)
    assert [(end.code, end.reason) for end in session.ended] == [(3000, "credentials expired; cause=expired")]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "moment",
    [
        timedelta(0),
        -timedelta(days=1),
        timedelta.min,
        0,
        -5.5,
        -1e300,
        -(10**400),
        -math.inf,
        datetime.min.replace(tzinfo=UTC),
    ],
)
async def test_expiry_in_the_past_ends_the_session_at_once(moment):
    looking, session = expiring()
    looking.deadlines.set_expiry(session, moment)
    assert looking.deadlines.expiry_of(session) <= datetime.now(UTC)
    await looking.pass_time(TICK_S)
    assert causes(session) == ["expired"]


@pytest.mark.parametrize(
    ("moment", "error", "text"),
    [
        (math.nan, ValueError, "not nan"),
        (math.inf, ValueError, "not inf"),
        (10**400, ValueError, "before the year 10000"),
        (1_800_000_000_000, ValueError, "milliseconds are to be divided by 1000"),
        (timedelta.max, ValueError, "before the year 10000"),
        (True, ValueError, "must be a moment, not True"),
        (datetime(2030, 1, 1, tzinfo=UTC).replace(tzinfo=None), ValueError, "must have a time zone"),
        (datetime(2030, 1, 1, tzinfo=Undecided()), ValueError, "must have a time zone"),
        ("2030-01-01", TypeError, "not '2030-01-01'"),
        (Decimal(5), TypeError, "Decimal"),
        (datetime(2030, 1, 1, tzinfo=UTC).date(), TypeError, "date"),
        (object(), TypeError, "object"),
    ],
)
def test_expiry_that_is_no_moment_is_an_error_with_the_remedy(moment, error, text):
    looking, session = expiring()
    looking.deadlines.set_expiry(session, timedelta(seconds=3))
    before = looking.deadlines.expiry_of(session)
    with pytest.raises(error, match="session.expires_at must") as raised:
        looking.deadlines.set_expiry(session, moment)
    assert text in str(raised.value)
    assert "use an aware datetime" in str(raised.value)
    assert looking.deadlines.expiry_of(session) == before


# In a guard


@pytest.mark.anyio
async def test_guard_closes_each_by_its_code_and_cause(caplog):
    caplog.set_level("INFO")
    seen = []
    guard = Guard(Settings(max_session_age=0.5, auth_timeout=0.2), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        expires, _, ages = guard.sessions
        ages.key = expires.key = "somebody"
        expires.expires_at = timedelta(seconds=0.01)
        await wait_until(lambda: not guard.sessions)
    (expired, auth, age) = (peer.closed for peer in stay.peers)
    assert expired == (3000, "credentials expired; cause=expired")
    assert auth == (3000, "authentication timeout; cause=auth")
    assert age[0] == 1012
    assert age[1].startswith("session age reached; retry_after=")
    assert age[1].endswith("; cause=age")
    assert guard.snapshot()["sheds"] == {"expired": 1, "auth": 1, "age": 1}
    assert guard.snapshot()["closes"] == {3000: 2, 1012: 1}
    assert sorted(event.cause for event in events_of(SessionShed, seen)) == ["age", "auth", "expired"]
    [record] = [record for record in caplog.records if record.__dict__.get("closecodes.gate.cause") == "auth"]
    assert (record.levelname, record.getMessage()) == ("INFO", "shed a session of /: auth; close code 3000")


def in_a_thread(function):
    """Run it to its end while the event loop stands still, and its clock with it."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.anyio
async def test_guard_ends_session_whose_expiry_a_thread_sets():
    """And though nothing had to tick before."""
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        session, other = guard.sessions
        assert session.expires_at is None
        assert not guard._ticker.is_running
        in_a_thread(lambda: setattr(session, "expires_at", 0))
        await wait_until(lambda: [*guard.sessions] == [other])
    assert stay.peers[0].closed[0] == 3000


@pytest.mark.anyio
async def test_guard_keeps_session_whose_expiry_was_cleared():
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        kept, ended = guard.sessions
        kept.expires_at = timedelta(seconds=0.2)
        ended.expires_at = timedelta(seconds=0.3)
        kept.expires_at = None
        assert kept.expires_at is None
        await wait_until(lambda: len(guard.sessions) == 1)
        assert [*guard.sessions] == [kept]


class Expiring:
    """A gate that says when a session expires, and then asks ``then``."""

    def __init__(self, then):
        self.then = then

    @asynccontextmanager
    async def admit(self, session):
        session.expires_at = timedelta(seconds=-1)
        await self.then()
        yield


@pytest.mark.anyio
async def test_expiry_that_a_gate_sets_bites_once_it_is_admitted():
    guard = Guard(Settings(), gate=Expiring(anyio.lowlevel.checkpoint))
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        await wait_until(lambda: not guard.sessions)
    assert stay.peers[0].closed[0] == 3000


@pytest.mark.anyio
async def test_expiry_of_refused_session_leaves_nothing_behind():
    async def refuse():
        raise TryAgainLater

    guard = Guard(Settings(), gate=Expiring(refuse))
    await Peer().visit(CloseCodeMiddleware(Handler(), guard))
    gc.collect()
    assert not guard.deadlines._heap
    assert not guard.deadlines._times


@pytest.mark.anyio
async def test_expiry_of_session_that_is_over_changes_nothing():
    kept = []

    async def handler(scope, receive, send):
        kept.append(scope["extensions"]["closecodes"])
        await Handler()(scope, receive, send)

    guard = Guard(Settings())
    await Peer().visit(CloseCodeMiddleware(handler, guard))
    kept[0].expires_at = 0
    assert not guard.deadlines._heap
    assert guard.snapshot()["sheds"] == {}


@pytest.mark.anyio
async def test_expired_handshake_is_refused_by_http_401():
    async def never(scope, receive, send):
        scope["extensions"]["closecodes"].expires_at = 0
        await anyio.sleep_forever()

    guard = Guard(Settings(shed_grace=0.1, reject_with="http"))
    peer = StayingClient(anyio.Event())
    with anyio.fail_after(10):
        await peer.visit(CloseCodeMiddleware(never, guard))
    assert peer.status == 401


@pytest.mark.anyio
async def test_key_that_is_taken_away_gives_time_for_another():
    guard = Guard(Settings(auth_timeout=0.2))
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        [session] = guard.sessions
        session.key = "somebody"
        await wait_until(lambda: guard.deadlines._current == 0)
        session.key = None
        await wait_until(lambda: not guard.sessions)
    assert stay.peers[0].closed[0] == 3000


@pytest.mark.anyio
async def test_guard_update_of_deadlines_applies_to_open_sessions():
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        next(iter(guard.sessions)).key = "somebody"
        guard.update(auth_timeout=0.1)
        await wait_until(lambda: len(guard.sessions) == 1)
        in_a_thread(lambda: guard.update(max_session_age=0.1))
        await wait_until(lambda: not guard.sessions)
    assert [peer.closed[0] for peer in stay.peers] == [1012, 3000]


@pytest.mark.anyio
async def test_deadlines_in_the_shadow_are_counted_and_logged(caplog):
    caplog.set_level("INFO")
    guard = Guard(Settings(max_session_age=0.1, auth_timeout=0.1, idle_timeout=0.5, shadow="all"))
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        await wait_until(lambda: "would have closed a session of /: idle_timeout (idle)" in caplog.text)
        assert len(guard.sessions) == 1
        await anyio.sleep(0.8)  # longer than the limit once more
    shadowed = [record for record in caplog.records if record.__dict__.get("closecodes.refusal.mode") == "shadow"]
    assert sorted(record.getMessage() for record in shadowed) == [
        "would have closed a session of /: auth_timeout (auth)",
        "would have closed a session of /: idle_timeout (idle)",
        "would have closed a session of /: max_session_age (age)",
    ]
    assert guard.snapshot()["sheds"] == {}
    assert guard.snapshot()["refusals"] == {}


@pytest.mark.anyio
async def test_session_without_deadlines_leaves_no_entry():
    guard = Guard(Settings(max_sessions=5))
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        assert not guard.deadlines.is_used
        assert not guard.deadlines._times
        [session, _] = guard.sessions
        assert session.expires_at is None
        session.expires_at = None
        assert not guard.deadlines.is_used
        assert not guard.deadlines.is_needed
        names = [name for kind in Session.__mro__ for name in getattr(kind, "__slots__", ())]
        assert not [name for name in names if "deadline" in name or "expir" in name]


@pytest.mark.anyio
async def test_limits_that_are_not_set_take_not_a_byte():
    """Whatever a session has, nothing of it was allocated by what keeps time, or by what that calls."""
    guard = Guard(Settings())
    keepers = [f"*/asgi_closecodes/guard/{name}.py" for name in ("deadlines", "timeouts", "activity", "ticker")]
    filters = [tracemalloc.Filter(inclusive=True, filename_pattern=keeper, all_frames=True) for keeper in keepers]
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        tracemalloc.start(10)
        try:
            await stay.come(5)
            kept = tracemalloc.take_snapshot().filter_traces(filters)
        finally:
            tracemalloc.stop()
    assert [str(trace) for trace in kept.traces] == []


@pytest.mark.anyio
async def test_forked_child_has_none_of_the_parents_deadlines():
    guard = Guard(Settings(max_session_age=60))
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        if not (child := os.fork()):
            os._exit(len(guard.deadlines._heap) + len(guard.deadlines._times))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(guard.deadlines._heap) == 2


def test_deadlines_of_two_event_loops_end_in_their_own():
    guard = Guard(Settings())
    portals = [anyio.from_thread.start_blocking_portal(backend) for backend in ("asyncio", "trio")]
    peers = [StayingClient(anyio.Event()) for _ in portals]
    try:
        started = [portal.__enter__() for portal in portals]
        done = [
            portal.start_task_soon(peer.visit, CloseCodeMiddleware(Handler(), guard))
            for portal, peer in zip(started, peers, strict=True)
        ]
        deadline = time.monotonic() + 10
        while len(guard.sessions) < 2 or not all(peer.sent for peer in peers):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for session in [*guard.sessions]:
            session.expires_at = 0
        for future in done:
            future.result(10)
    finally:
        for portal in portals:
            portal.__exit__(None, None, None)
    assert [peer.closed[0] for peer in peers] == [3000, 3000]
