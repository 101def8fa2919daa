"""The limiter of messages without a guard, and in a session."""

import asyncio
import math
import time
from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.events import SessionClosed, SessionRefused, SessionShed
from asgi_closecodes.session import MessageRate, message_rate
from asgi_closecodes.session.message_rate import LimitedReceive, ShadowedReceive
from tests.support.asgi import Handler, Peer, events_of
from tests.support.fakes import Clock, ConnectedClients, wait_until

pytestmark = pytest.mark.jumping_clock

DATA = {"type": "websocket.receive", "text": "x"}


class Limited:
    """A session as far as the limiter needs it, whose peer sends when the clock says so."""

    is_leaving = is_interrupted = False
    connection = None

    def __init__(self, rate, monkeypatch=None, kind=LimitedReceive):
        self.clock = Clock()
        self.arrivals = []
        self.calls, self.closes, self.reports = [], [], []
        self.limited = kind(self, self._server, rate, self.clock)
        self.server_receive = self.limited.receive

    async def _server(self):
        self.calls.append(self.clock.now)
        self.clock.now = max(self.clock.now, self.arrivals.pop(0))
        return DATA

    def schedule_close(self, refusal):
        self.closes.append((self.clock.now, refusal))
        self.is_leaving = True

    def facts(self):
        return None

    def report(self, event):
        self.reports.append(event)

    async def sleep(self, seconds):
        assert seconds > 0
        self.clock.now += seconds

    def receive(self, *arrivals, handling=0.0):
        """Return when the handler received what had arrived then; it handles each for so long."""
        self.arrivals = [1000.0 + one for one in arrivals]
        received = []

        async def main():
            while self.arrivals and not self.closes:
                await self.server_receive()
                received.append(round(self.clock.now - 1000, 6))
                self.clock.now += handling

        real, message_rate.anyio = message_rate.anyio, SimpleNamespace(sleep=self.sleep)
        try:
            asyncio.run(main())
        finally:
            message_rate.anyio = real
        return received


def test_burst_passes_at_once_and_then_the_rate_counts():
    limited = Limited(MessageRate(10, 5, math.inf))
    assert limited.receive(*[0] * 8) == [0, 0, 0, 0, 0, 0.1, 0.2, 0.3]
    assert [round(at - 1000, 6) for at in limited.calls] == [0, 0, 0, 0, 0, 0.1, 0.2, 0.3], "it is called later"


def test_burst_is_there_again_after_a_pause():
    limited = Limited(MessageRate(10, 5, math.inf))
    assert limited.receive(*[0] * 5, *[10] * 6) == [0] * 5 + [10] * 5 + [10.1]


def test_rate_below_one_a_second():
    assert Limited(MessageRate(0.5, 1, math.inf)).receive(0, 0, 0) == [0, 2, 4]


@given(
    st.floats(0.01, 1000),
    st.integers(1, 20),
    st.lists(st.floats(0, 5), min_size=1, max_size=60),
    st.floats(0, 0.5),
)
def test_no_stretch_of_time_has_more_than_rate_and_burst(per_second, burst, gaps, handling):
    arrivals = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    received = Limited(MessageRate(per_second, burst, math.inf)).receive(*arrivals, handling=handling)
    assert len(received) == len(arrivals)
    for first in range(len(received)):
        for last in range(first, len(received)):
            allowed = burst + (received[last] - received[first]) * per_second
            assert last - first + 1 <= allowed + 1e-3 * (1 + per_second)


@given(st.floats(0.2, 1000), st.integers(1, 50), st.floats(0.1, 20))
def test_flooder_is_closed_when_its_patience_is_over(per_second, burst, patience):
    limited = Limited(MessageRate(per_second, burst, patience))
    received = limited.receive(*[0] * 30_000 if per_second * patience < 29_000 else [0])
    if len(received) > 1:
        [(at, refusal)] = limited.closes
        assert patience - 1e-6 <= at - 1000 <= patience + 2 / per_second + 1e-6
        assert (refusal.code, refusal.reason) == (1008, "too many messages; cause=messages")


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("per_second", [0.5, 2, 10, 100])
def test_peer_below_the_rate_is_never_closed_after_a_burst(per_second, share):
    """Though it is delayed until what it has sent before its time has been made up for."""
    limited = Limited(MessageRate(per_second, 5, 5.0))
    even = [number / per_second / share for number in range(1, int(per_second * 60))]
    assert len(limited.receive(*[0] * 5, *even)) == len(even) + 5
    assert limited.closes == []


@given(st.floats(0.01, 1000), st.integers(1, 20))
def test_peer_at_the_rate_receives_as_it_sends(per_second, burst):
    even = [number * 1.0001 / per_second for number in range(30)]
    assert Limited(MessageRate(per_second, burst, math.inf)).receive(*even) == pytest.approx(even, abs=1e-5)


@given(st.floats(0.01, 20), st.integers(1, 20), st.floats(0.1, 0.9))
def test_peer_below_the_rate_is_not_closed_without_a_burst(per_second, burst, share):
    limited = Limited(MessageRate(per_second, burst, max(5.0, 10 / per_second)))
    assert len(limited.receive(*[number / per_second / share for number in range(200)])) == 200
    assert limited.closes == []


def test_peer_with_one_message_is_not_closed_for_the_next():
    """A peer that says one thing is not closed, though the next would wait."""
    limited = Limited(MessageRate(0.1, 1, 5.0))
    assert limited.receive(0, 60, 120) == [0, 60, 120]
    assert limited.closes == []


def test_slow_handler_is_not_its_peers_fault():
    limited = Limited(MessageRate(1, 1, 5.0))
    assert len(limited.receive(*[0] * 30, handling=2.0)) == 30
    assert limited.closes == []


@given(st.floats(0.2, 100), st.integers(1, 20), st.lists(st.floats(0, 2), max_size=40))
def test_shadow_reports_once_and_delays_nobody(per_second, burst, gaps):
    arrivals = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    limited = Limited(MessageRate(per_second, burst, 2.0, is_shadow=True), kind=ShadowedReceive)
    assert limited.receive(*arrivals) == [round(one, 6) for one in arrivals]
    assert len(limited.reports) <= 1
    assert limited.closes == []


def test_shadow_reports_whom_the_limit_would_have_closed():
    for count, reported in ((10, 0), (100, 1)):
        limited = Limited(MessageRate(10, 5, 5.0, is_shadow=True), kind=ShadowedReceive)
        limited.receive(*[0] * count)
        assert len(limited.reports) == reported
    assert limited.reports[0].mode == "shadow"


def test_shadow_that_is_replaced_reports_nothing():
    limited = Limited(MessageRate(10, 5, 5.0, is_shadow=True), kind=ShadowedReceive)
    limited.limited.retire()
    limited.receive(*[0] * 100)
    assert limited.reports == []


# In sessions


class Flooder(Peer):
    """A peer that sends for ever, and leaves when it is told to."""

    def __init__(self, **scope):
        super().__init__(**scope)
        self.taken = 0
        self.is_gone = False

    async def receive(self):
        await self._point()
        if len(self._says) == 2:
            return self._says.pop(0)
        if self.is_gone:
            return self._says[0]
        self.taken += 1
        return DATA


@pytest.mark.anyio
async def test_flooder_is_closed_with_1008_and_counts_as_refused():
    seen = []
    settings = Settings(messages_per_second=50, message_burst=5, message_patience=0.3)
    guard, peer = Guard(settings, observers=[seen.append]), Flooder()
    with anyio.fail_after(10):
        await peer.visit(CloseCodeMiddleware(Handler(), guard))
    assert peer.closed == (1008, "too many messages; cause=messages")
    assert peer.taken < 50 * 5
    [refused] = events_of(SessionRefused, seen)
    assert (refused.gate, refused.cause, refused.mode, refused.limit) == ("messages", "messages", "close", 50)
    assert (refused.is_overload, refused.session.phase) == (False, "open")
    assert events_of(SessionShed, seen) == []
    assert [event.outcome for event in events_of(SessionClosed, seen)] == ["shed"]
    snapshot = guard.snapshot()
    assert (snapshot["refusals"], snapshot["closes"]) == ({"messages": 1}, {1008: 1})
    assert snapshot["gates"] == [
        {"name": "messages", "cause": "messages", "usage": None, "limit": 50, "shadow": False}
    ]  # fmt: skip


@pytest.mark.anyio
async def test_shed_and_disconnect_interrupt_the_delay():
    guard = Guard(Settings(messages_per_second=0.01, message_patience=600))
    for is_shed in (True, False):
        peer = Flooder()
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(peer.visit, CloseCodeMiddleware(Handler(), guard))
                await wait_until(lambda peer=peer: peer.taken == 1)
                await anyio.sleep(0.05)
                [session] = guard.sessions
                peer.is_gone = True
                if is_shed:
                    await session.shed("test")
                else:
                    session._on_disconnect(None)  # as a send that fails would
        assert peer.taken == 1
        assert not is_shed or peer.closed[0] == 1013


@pytest.mark.anyio
async def test_receive_cancelled_while_delayed_loses_nothing():
    guard, texts = Guard(Settings(messages_per_second=20, message_burst=1)), []

    async def handler(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            with anyio.move_on_after(0.01):
                if (message := await receive())["type"] == "websocket.disconnect":
                    return
                texts.append(message["text"])

    peer = Peer(*map(str, range(6)))
    with anyio.fail_after(20):
        await peer.visit(CloseCodeMiddleware(handler, guard))
    assert texts == [*map(str, range(6))]


@pytest.mark.anyio
async def test_flooder_of_a_handler_that_polls_is_closed_too():
    guard = Guard(Settings(messages_per_second=20, message_burst=1, message_patience=0.3))

    async def handler(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            with anyio.move_on_after(0.01):
                if (await receive())["type"] == "websocket.disconnect":
                    return

    peer = Flooder()
    with anyio.fail_after(20):
        await peer.visit(CloseCodeMiddleware(handler, guard))
    assert peer.closed[0] == 1008


@pytest.mark.anyio
async def test_limit_changes_open_sessions_and_goes_away_again():
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        before = [session.server_receive for session in guard.sessions]
        assert before == [peer.receive for peer in stay.peers], "without a limit it is the server's own"
        guard.update(messages_per_second=5)
        guard.update(messages_per_second=7, shadow="messages_per_second")
        kinds = [type(session.server_receive.__self__) for session in guard.sessions]
        assert kinds == [ShadowedReceive] * 2
        assert [session.server_receive.__self__.server_receive for session in guard.sessions] == before
        guard.update(messages_per_second=None)
        assert [session.server_receive for session in guard.sessions] == before
    assert guard.snapshot()["gates"] == []


@pytest.mark.anyio
async def test_limit_that_is_taken_away_ends_the_delay():
    guard = Guard(Settings(messages_per_second=0.01, message_patience=600))
    peer = Flooder()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.visit, CloseCodeMiddleware(Handler(), guard))
            await wait_until(lambda: peer.taken == 1)
            guard.update(messages_per_second=None)
            await wait_until(lambda: peer.taken > 10)
            peer.is_gone = True


@pytest.mark.anyio
async def test_shadow_of_messages_is_told_once_a_session():
    seen = []
    settings = Settings(messages_per_second=10, message_burst=1, message_patience=0.5, shadow="messages_per_second")
    peer = Peer(*["x"] * 100)
    await peer.visit(CloseCodeMiddleware(Handler(), Guard(settings, observers=[seen.append])))
    [refused] = events_of(SessionRefused, seen)
    assert (refused.mode, refused.gate, refused.close.code) == ("shadow", "messages", 1008)
    assert "close" not in peer.heard or peer.closed[0] == 1000


def test_delay_ended_in_the_interruption_s_turn_asks_no_server():
    """The future of the delay is done then, and cannot be cancelled any more."""
    asked = []

    async def main():
        guard = Guard(Settings(messages_per_second=0.01, message_patience=600, shed_grace=60))
        peer = Flooder()
        app = CloseCodeMiddleware(Handler(), guard)
        visit = asyncio.create_task(peer.visit(app))
        await wait_until(lambda: peer.taken == 1)
        [session] = guard.sessions
        limited = session.server_receive.__self__
        peer.receive = None
        limited.server_receive = lambda: asked.append(1) or asyncio.sleep(60)
        await asyncio.sleep(0)
        waiting = session._waiting
        while (deeper := getattr(waiting, "cr_await", None)) is not None:
            waiting = deeper
        limited._due_at = time.monotonic()
        [future] = [one for one in __import__("gc").get_referents(waiting) if asyncio.isfuture(one)]
        future.set_result(None)
        await session.shed("test")
        await asyncio.wait_for(visit, 5)
        assert peer.closed[0] == 1013

    asyncio.run(main())
    assert asked == []


@pytest.mark.anyio
async def test_session_with_a_limit_is_gone_with_its_last_reference():
    import gc
    import weakref

    found = []

    async def handler(scope, receive, send):
        found.append(weakref.ref(scope["extensions"]["closecodes"]))
        await Handler()(scope, receive, send)

    guard = Guard(Settings(messages_per_second=1000))
    gc.collect()
    gc.disable()
    try:
        await Peer("x").visit(CloseCodeMiddleware(handler, guard))
        await anyio.sleep(0.01)
        assert found[0]() is None
    finally:
        gc.enable()


@pytest.mark.anyio
@pytest.mark.parametrize("change", [{"messages_per_second": None}, {"messages_per_second": 0.01}])
async def test_limit_that_changes_between_two_messages_counts_at_once(change):
    """For a handler too that holds the receive of the limit before."""
    guard = Guard(Settings(messages_per_second=1000, message_burst=1000, message_patience=600))
    peer, wanted = Flooder(), anyio.Event()

    async def handler(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        guard.update(**change, message_burst=1)
        for _ in range(2):
            await receive()
        wanted.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.visit, CloseCodeMiddleware(handler, guard))
        with anyio.move_on_after(10 if change["messages_per_second"] is None else 0.5):
            await wanted.wait()
        assert wanted.is_set() is (change["messages_per_second"] is None)
        assert peer.taken == (3 if wanted.is_set() else 2)
        tasks.cancel_scope.cancel()
