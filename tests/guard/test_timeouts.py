"""Time limits of open sessions: idle ones, sends that do not end, handlers that go on without their peer."""

import asyncio
import contextlib
import itertools
import json
import os
import random
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.events import CloseFailed, SessionFailed, SessionShed
from asgi_closecodes.guard import timeouts
from asgi_closecodes.guard.timeouts import SessionTimeouts
from asgi_closecodes.logs import JsonFormatter
from asgi_closecodes.session import MessageRate, Session, is_pending
from asgi_closecodes.session.message_rate import LimitedReceive
from tests.support.asgi import Handler, events_of
from tests.support.fakes import Clock, ConnectedClients, StayingClient, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.jumping_clock]


class FakeConnection:
    """The connection of one of them."""

    is_lost = False
    unsent = None


class Watched:
    """As much of a session as time limits need."""

    def __init__(self):
        self.received = self.sent = 0
        self.sending = None
        self.is_leaving = self.has_departed = False
        self.ended, self.cancelled, self.followed = [], 0, 0
        self.permits = object()
        self.server_receive = None
        self.connection = FakeConnection()

    @property
    def message_count(self):
        return self.received + self.sent

    def schedule_close(self, refusal):
        self.is_leaving = True
        self.ended.append(refusal)

    def cancel_soon(self):
        self.cancelled += 1

    def follow_rules_soon(self):
        self.followed += 1

    def over(self):
        self.permits = None


class Pending:
    """What a server's send may return that is no coroutine."""

    is_done = False

    def done(self):
        return self.is_done


def limits(**some):
    nothing = {
        "idle_timeout": None,
        "send_timeout": None,
        "cancel_after_disconnect": False,
        "shed_grace": 10.0,
        "shadow": (),
    }
    return SimpleNamespace(**{**nothing, **some})


class Looking:
    """Time limits that look at ``count`` sessions, by a clock of their own."""

    def __init__(self, count=1, **some):
        self.clock = Clock()
        self.sessions = [Watched() for _ in range(count)]
        self.timeouts = SessionTimeouts(self.sessions, self.clock)
        self.timeouts.apply(limits(**some))

    async def pass_time(self, seconds, tick=0.1):
        for _ in range(round(seconds / tick)):
            self.clock.now += tick
            await self.timeouts.check()
        while self.timeouts._ending_in is not None:
            await anyio.lowlevel.checkpoint()

    async def first_end(self, within):
        """Return the seconds until the first session is ended."""
        start = self.clock.now
        while not any(session.ended for session in self.sessions):
            assert self.clock.now - start < within
            await self.pass_time(0.1)
        return self.clock.now - start


# Idle


@pytest.mark.parametrize("timeout", [0.5, 2, 10, 60, 1000])
@pytest.mark.parametrize("count", [1, 2000])
async def test_idle_session_is_closed_in_time_never_early(timeout, count):
    """Not before the limit, and late by at most a second or a tenth of it, wherever in the round its message came."""
    looking = Looking(count, idle_timeout=timeout)
    last = {}
    for _ in range(20):
        for session in looking.sessions:
            if session not in last or random.random() < 0.3:
                session.received += 1
                last[session] = looking.clock.now
        await looking.pass_time(0.1)
    tick = max(timeout / 200, 0.1)  # a long limit takes too many of them
    while any(not session.ended for session in looking.sessions):
        before = {session for session in looking.sessions if session.ended}
        await looking.pass_time(min(tick, 1), min(tick, 1))
        for session in looking.sessions:
            if session.ended and session not in before:
                waited = looking.clock.now - last[session]
                assert timeout <= waited <= timeout + max(1, timeout / 10) + 2 * min(tick, 1)
    assert {(end.code, end.reason, end.cause) for session in looking.sessions for end in session.ended} == {
        (3008, "idle timeout; cause=idle", "idle")
    }


@pytest.mark.parametrize("direction", ["received", "sent"])
async def test_message_in_either_direction_keeps_session_open(direction):
    looking = Looking(2, idle_timeout=5)
    for _ in range(40):
        setattr(looking.sessions[0], direction, getattr(looking.sessions[0], direction) + 1)
        await looking.pass_time(1)
    assert [len(session.ended) for session in looking.sessions] == [0, 1]


async def test_session_whose_messages_are_delayed_is_not_idle():
    """A limit of messages that delays for longer than the idle timeout makes nobody idle, and keeps nobody for good."""
    looking = Looking(idle_timeout=2)
    [session] = looking.sessions

    async def receive():
        return {"type": "websocket.receive", "text": ""}

    limited = LimitedReceive(session, receive, MessageRate(0.1, 1, 60), looking.clock)
    session.server_receive = limited.receive
    await limited.receive()
    session.received += 1
    await looking.pass_time(9.5)
    assert not session.ended
    await looking.pass_time(4)
    assert session.ended


async def test_idle_look_at_50000_sessions_is_shared_out(monkeypatch):
    """No turn of the event loop looks at more than a few, and no tick at all of them."""
    looking = Looking(50_000, idle_timeout=60)
    looks = []
    check_next = SessionTimeouts._check_next
    monkeypatch.setattr(
        SessionTimeouts, "_check_next", lambda self, count, now: looks.append(count) or check_next(self, count, now)
    )
    await looking.pass_time(3)
    assert len(looks) >= 30
    assert max(looks) <= 2000


async def test_many_idle_at_once_are_ended_a_few_a_turn():
    looking = Looking(1000, idle_timeout=1)
    ended = []

    async def watch():
        while True:
            ended.append(sum(len(session.ended) for session in looking.sessions))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await looking.pass_time(3)
        tasks.cancel_scope.cancel()
    assert sum(len(session.ended) for session in looking.sessions) == 1000
    assert max(after - before for before, after in itertools.pairwise(ended)) <= 50


async def test_time_in_which_the_loop_stood_still_does_not_count():
    """Messages may have come meanwhile, which nobody has received yet."""
    looking = Looking(idle_timeout=10)
    await looking.pass_time(1)
    looking.clock.now += 600
    await looking.timeouts.check()
    await looking.pass_time(1)
    assert not looking.sessions[0].ended


async def test_loop_that_stood_still_checks_not_all_at_once(monkeypatch):
    """Seconds that do not count ask for no checks: 50 000 at once would take the time of 20 ticks."""
    looking = Looking(50_000, idle_timeout=1000)
    await looking.pass_time(1)
    checked = []
    check_next = SessionTimeouts._check_next
    monkeypatch.setattr(
        SessionTimeouts, "_check_next", lambda self, count, now: checked.append(count) or check_next(self, count, now)
    )
    looking.clock.now += 600
    await looking.timeouts.check()
    assert sum(checked) == pytest.approx(10_000, abs=1)  # the second that counts, of the 5 in which all are checked


async def test_session_that_is_over_is_forgotten():
    looking = Looking(10, idle_timeout=60)
    for session in looking.sessions[3:]:
        session.over()
    await looking.pass_time(6)
    assert len(looking.timeouts._ring) == 3


# Sends


async def test_send_that_does_not_end_is_slow():
    looking = Looking(2, send_timeout=3)
    looking.sessions[0].sending = Pending()
    assert await looking.first_end(within=5) >= 3
    assert [end.cause for end in looking.sessions[0].ended] == ["slow"]
    assert not looking.sessions[1].ended


async def test_sends_that_end_are_never_slow():
    looking = Looking(send_timeout=3)
    for _ in range(50):
        before, looking.sessions[0].sending = looking.sessions[0].sending, Pending()
        if before is not None:
            before.is_done = True
        await looking.pass_time(2)
    assert not looking.sessions[0].ended


async def test_send_among_others_that_are_begun_later_is_slow():
    """Another task of the handler's begins one every 100 ms: the last one is never old, the first one is."""
    looking = Looking(send_timeout=3)
    for _ in range(60):
        looking.sessions[0].sending = Pending()
        await looking.pass_time(0.1)
    assert looking.sessions[0].ended


async def test_peer_that_takes_something_of_a_send_is_not_slow():
    looking = Looking(2, send_timeout=8)
    for session in looking.sessions:
        session.connection.unsent = 10**6
        session.sending = Pending()
    for _ in range(40):
        looking.sessions[0].connection.unsent -= 1
        await looking.pass_time(2)
    assert [len(session.ended) for session in looking.sessions] == [0, 1]


@pytest.mark.parametrize("is_known", [False, True])
async def test_send_queue_that_only_grows_or_is_unknown_is_slow(monkeypatch, is_known):
    looking = Looking(send_timeout=8)
    growing = itertools.count()
    monkeypatch.setattr(FakeConnection, "unsent", property(lambda _: next(growing) if is_known else None))
    looking.sessions[0].sending = Pending()
    assert await looking.first_end(within=10) >= 8


async def test_stalled_are_open_sessions_in_one_send_for_5_s():
    looking = Looking(4, send_timeout=60)
    for session in looking.sessions[1:]:
        session.sending = Pending()
    await looking.pass_time(4.5)
    assert looking.timeouts.stalled() == 0
    await looking.pass_time(1.5)
    assert looking.timeouts.stalled() == 3
    looking.sessions[1].sending.is_done = True
    looking.sessions[2].is_leaving = True
    assert looking.timeouts.stalled() == 1
    looking.sessions[3].over()
    await looking.pass_time(5)
    assert looking.timeouts.stalled() == 0


async def test_idle_session_with_a_send_on_its_way_is_not_idle():
    looking = Looking(idle_timeout=2, send_timeout=60)
    looking.sessions[0].sending = Pending()
    await looking.pass_time(10)
    assert not looking.sessions[0].ended


class Hostile:
    @property
    def done(self):
        raise ValueError

    @property
    def cr_suspended(self):
        raise ValueError


class Cython:
    cr_await = None


@pytest.mark.parametrize(
    "awaitable",
    [None, 1, "x", object(), Hostile(), Cython(), SimpleNamespace(done=lambda: 1 / 0), SimpleNamespace(done=5)],
)
async def test_is_pending_is_false_for_what_does_not_tell(awaitable):
    assert not is_pending(awaitable)


async def test_is_pending_of_a_cython_coroutine_that_waits():
    Cython.cr_await = object()
    try:
        assert is_pending(Cython())
    finally:
        Cython.cr_await = None


async def test_is_pending_follows_a_coroutine():
    gate = anyio.Event()

    async def send():
        await gate.wait()

    coroutine = send()
    assert not is_pending(coroutine)

    async def run():
        await coroutine

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await wait_until(lambda: is_pending(coroutine))
        gate.set()
    assert not is_pending(coroutine)


# Departures


async def test_handler_whose_connection_is_gone_is_cancelled():
    looking = Looking(3, cancel_after_disconnect=True, shed_grace=3)
    for session in looking.sessions[:2]:
        session.connection.is_lost = True
    looking.sessions[1].is_leaving = True  # closed by this side
    await looking.pass_time(5)
    assert [session.cancelled for session in looking.sessions] == [1, 0, 0]


async def test_handler_that_goes_on_is_cancelled_once_after_the_grace():
    looking = Looking(2, cancel_after_disconnect=True, shed_grace=3)
    looking.sessions[0].has_departed = looking.sessions[0].is_leaving = True
    await looking.pass_time(2.9)
    assert looking.sessions[0].cancelled == 0
    await looking.pass_time(5)
    assert [session.cancelled for session in looking.sessions] == [1, 0]


# In a guard


class Mute(StayingClient):
    """A peer that takes ``most`` messages and reads no more, until it is told to."""

    def __init__(self, gone, most=2, **scope):
        super().__init__(gone, **scope)
        self.most = most
        self.reads = anyio.Event()

    async def send(self, message):
        if len(self.sent) >= self.most and message["type"] == "websocket.send":
            await self.reads.wait()
        await super().send(message)


async def visiting(guard, handler, peer, tasks):
    tasks.start_soon(peer.visit, CloseCodeMiddleware(handler, guard))
    await wait_until(lambda: peer.sent)


async def flood(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        await send({"type": "websocket.send", "text": "x"})
        await anyio.sleep(0.01)


async def flood_in_a_child_task(scope, receive, send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flood, scope, receive, send)


async def test_guard_closes_idle_session_with_3008_and_says_so(caplog):
    caplog.set_level("INFO")
    seen = []
    guard = Guard(Settings(idle_timeout=0.3), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        await wait_until(lambda: not guard.sessions)
    assert [peer.closed for peer in stay.peers] == [(3008, "idle timeout; cause=idle")] * 2
    assert [(event.cause, event.retry_after) for event in events_of(SessionShed, seen)] == [("idle", None)] * 2
    assert guard.snapshot()["sheds"] == {"idle": 2}
    assert guard.snapshot()["closes"] == {3008: 2}
    record = next(record for record in caplog.records if record.__dict__.get("closecodes.gate.cause") == "idle")
    assert (record.levelname, record.getMessage()) == ("INFO", "shed a session of /: idle; close code 3008")
    assert "closecodes.refusal.retry_after" not in json.loads(JsonFormatter().format(record))


@pytest.mark.parametrize("http", [False, True])
async def test_guard_answers_an_idle_handshake_by_policy(http):
    async def never(scope, receive, send):
        await receive()
        await anyio.sleep_forever()

    guard = Guard(Settings(idle_timeout=0.2, shed_grace=0.1, reject_with="http" if http else "close"))
    peer = StayingClient(anyio.Event())
    with anyio.fail_after(10):
        await peer.visit(CloseCodeMiddleware(never, guard))
    assert peer.status == 408 if http else peer.closed[0] == 3008


@pytest.mark.parametrize("handler", [flood, flood_in_a_child_task])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_guard_sheds_session_whose_peer_does_not_read(handler, when):
    """Also where the limit is set when the session is open already, or waits in that send."""
    seen = []
    guard = Guard(Settings(shed_grace=0.1, send_timeout=0.5 if when == "before" else None), observers=[seen.append])
    gone = anyio.Event()
    peer = Mute(gone, most=20)
    async with anyio.create_task_group() as tasks:
        await visiting(guard, handler, peer, tasks)
        if when == "after":
            guard.update(send_timeout=0.5)
        await wait_until(lambda: not guard.sessions)
        gone.set()
    assert peer.closed[0] == 1013
    assert peer.closed[1].endswith("; cause=slow")
    assert guard.snapshot()["sheds"] == {"slow": 1}
    assert not events_of(SessionFailed, seen)


async def test_guard_keeps_session_whose_sends_end():
    guard = Guard(Settings(send_timeout=0.3))
    gone = anyio.Event()
    peer = StayingClient(gone)
    async with anyio.create_task_group() as tasks:
        await visiting(guard, flood, peer, tasks)
        await anyio.sleep(1.5)
        assert len(guard.sessions) == 1
        tasks.cancel_scope.cancel()


async def test_guard_counts_stalled_sessions_where_it_looks(monkeypatch):
    monkeypatch.setattr(timeouts, "STALLED_AFTER_S", 0.2)
    guard = Guard(Settings(send_timeout=60))
    peer = Mute(anyio.Event())
    async with anyio.create_task_group() as tasks:
        await visiting(guard, flood, peer, tasks)
        await wait_until(lambda: guard.snapshot()["stalled"] == 1)
        peer.reads.set()
        await wait_until(lambda: guard.snapshot()["stalled"] == 0)
        tasks.cancel_scope.cancel()


async def test_forked_child_looks_at_none_of_the_parents(monkeypatch):
    monkeypatch.setattr(timeouts, "STALLED_AFTER_S", 0.1)
    guard = Guard(Settings(send_timeout=60))
    async with anyio.create_task_group() as tasks:
        await visiting(guard, flood, Mute(anyio.Event()), tasks)
        await wait_until(lambda: guard.snapshot()["stalled"] == 1)
        if not (child := os.fork()):
            os._exit(guard.snapshot()["stalled"] or len(guard._timeouts._ring))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert guard.snapshot()["stalled"] == 1
        tasks.cancel_scope.cancel()


async def test_no_send_timeout_remembers_nothing():
    guard = Guard(Settings(max_sessions=5, idle_timeout=60))
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        [session] = guard.sessions
        assert type(session) is Session
        assert session._send_on.__func__ is Session._send_on
        assert session._deliver == stay.peers[0].send
        assert session.sending is None


async def go_on(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass
    await anyio.sleep_forever()


async def go_on_in_child_tasks(scope, receive, send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)
        await go_on(scope, receive, send)


async def send_and_swallow(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        with contextlib.suppress(OSError):
            await send({"type": "websocket.send", "text": "x"})
        await anyio.sleep(0.01)


class Lost(StayingClient):
    """A peer whose departure the server tells by an OSError too."""

    async def send(self, message):
        if self.gone.is_set():
            await anyio.lowlevel.checkpoint()
            raise OSError
        await super().send(message)


@pytest.mark.parametrize("handler", [go_on, go_on_in_child_tasks, send_and_swallow])
@pytest.mark.parametrize("when", ["before", "while open", "after the departure"])
@pytest.mark.parametrize("sends", [None, 60])
async def test_guard_cancels_handler_that_goes_on_without_its_peer(handler, when, sends):
    seen = []
    guard = Guard(
        Settings(shed_grace=0.1, cancel_after_disconnect=when == "before", send_timeout=sends), observers=[seen.append]
    )
    gone = anyio.Event()
    peer = Lost(gone)
    async with anyio.create_task_group() as tasks:
        await visiting(guard, handler, peer, tasks)
        if when == "while open":
            guard.update(cancel_after_disconnect=True)
            await anyio.sleep(0.05)
        gone.set()
        if when == "after the departure":
            await anyio.sleep(0.05)
            guard.update(cancel_after_disconnect=True)
        await wait_until(lambda: not guard.sessions)
    assert not events_of(SessionFailed, seen)
    assert not events_of(CloseFailed, seen)
    assert "close" not in peer.heard
    assert guard.snapshot()["errors"] == 0


async def test_guard_without_it_lets_the_handler_go_on():
    guard = Guard(Settings(shed_grace=0.1, idle_timeout=60))
    gone = anyio.Event()
    peer = Lost(gone)
    async with anyio.create_task_group() as tasks:
        await visiting(guard, go_on, peer, tasks)
        gone.set()
        await anyio.sleep(1)
        assert len(guard.sessions) == 1
        tasks.cancel_scope.cancel()


async def test_handler_that_cleans_up_in_time_is_not_cancelled():
    cancelled = []

    async def clean_up(scope, receive, send):
        await Handler()(scope, receive, send)
        try:
            await anyio.sleep(0.3)
        except anyio.get_cancelled_exc_class():
            cancelled.append(scope)
            raise

    guard = Guard(Settings(cancel_after_disconnect=True, shed_grace=5))
    async with ConnectedClients(guard, clean_up) as stay:
        await stay.come(3)
    assert not guard.sessions
    assert not cancelled


async def test_cancellation_from_outside_goes_on_to_whoever_cancels():
    """A handler that goes on without its peer, and whose server is cancelled before the grace is over."""
    guard = Guard(Settings(cancel_after_disconnect=True, shed_grace=60))
    gone = anyio.Event()
    peer = StayingClient(gone)
    finished = False
    with anyio.move_on_after(0.25) as scope:
        gone.set()
        await peer.visit(CloseCodeMiddleware(go_on, guard))
        finished = True
    assert scope.cancelled_caught
    assert not finished


# Changed while running


async def test_update_sets_changes_and_unsets_limits_while_running():
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        assert not guard._ticker.is_running
        guard.update(idle_timeout=60, send_timeout=60, cancel_after_disconnect=True)
        assert guard._ticker.is_running
        assert len(guard._timeouts._ring) == 2
        await stay.come(1)
        assert len(guard._timeouts._ring) == 3
        guard.update(idle_timeout=None, send_timeout=None, cancel_after_disconnect=False)
        assert not guard._timeouts._ring
        await wait_until(lambda: not guard._ticker.is_running)
        assert not [code for code in stay.codes() if code]
        guard.update(idle_timeout=0.2)
        await wait_until(lambda: not guard.sessions)
        assert stay.codes() == [3008] * 3


async def test_update_leaves_no_trace_of_unset_limits_in_sessions():
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        [session] = guard.sessions
        guard.update(send_timeout=60, cancel_after_disconnect=True)
        await wait_until(lambda: session._deliver != stay.peers[0].send)
        guard.update(send_timeout=None)
        await wait_until(lambda: session._deliver == session._send_and_notice)
        guard.update(cancel_after_disconnect=False)
        await wait_until(lambda: session._deliver == stay.peers[0].send)


def test_timeout_in_another_loop_than_the_ticker_s_is_kept():
    """One guard may serve several event loops, each in its thread."""
    guard = Guard(Settings(idle_timeout=0.3))

    async def stay(count):
        async with ConnectedClients(guard) as staying:
            await staying.come(count)
            await wait_until(lambda: all(staying.codes()))
        return staying.codes()

    async def main():
        other = asyncio.to_thread(asyncio.run, stay(2))
        return await asyncio.gather(stay(1), other)

    assert asyncio.run(main()) == [[3008], [3008] * 2]
