"""A session counts as long as its connection is held, whatever a server's transport says, and no longer than it may."""

import asyncio
import contextlib
import functools
import gc
import math
import os
import socket
import weakref

import anyio
import pytest
from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, WebSocketRoute

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, TryAgainLater
from asgi_closecodes.events import SessionAbandoned, SessionClosed
from asgi_closecodes.gates import MaxSessions, MaxSessionsPerKey
from asgi_closecodes.session import departure, protocol
from asgi_closecodes.session.connection import Connection, StreamConnection, connection_of
from asgi_closecodes.session.departure import Departure, Step
from asgi_closecodes.session.progress_deadline import ProgressDeadline
from tests.support.asgi import Peer, events_of
from tests.support.fakes import wait_until


class Socket:
    def __init__(self, transport):
        self.transport = transport

    def fileno(self):
        return -1 if self.transport.is_gone else 7


class Transport:
    """A transport of asyncio's, of a peer that leaves when it is told to."""

    def __init__(self, buffered=0):
        self.buffered = buffered
        self.is_gone = False
        self.aborts = 0

    def is_closing(self):
        return self.is_gone

    def get_write_buffer_size(self):
        return 0 if self.is_gone else self.buffered

    def get_extra_info(self, name, default=None):
        return Socket(self) if name == "socket" else default

    def abort(self):
        self.aborts += 1
        self.is_gone = True


class Deaf(Transport):
    """One that cannot be aborted."""

    def abort(self):
        self.aborts += 1


class Server(Peer):
    """A protocol of asyncio's that hands over its own methods; its peer never leaves by itself."""

    def __init__(self, transport=None, **scope):
        super().__init__(**scope)
        if transport is not None:
            self.transport = transport

    async def receive(self):
        if len(self._says) == 1:
            await anyio.sleep_forever()
        return await super().receive()


async def accept(receive, send):
    await receive()
    await send({"type": "websocket.accept"})


async def stay(scope, receive, send):
    await accept(receive, send)
    await receive()


async def returns(scope, receive, send):
    await accept(receive, send)


async def close(scope, receive, send):
    await accept(receive, send)
    await send({"type": "websocket.close", "code": 4000})


async def crash(scope, receive, send):
    await accept(receive, send)
    raise ValueError


@contextlib.asynccontextmanager
async def running(handler, guard, server):
    """The session of ``handler`` in a task, once it has answered its handshake."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.visit, CloseCodeMiddleware(handler, guard))
        await wait_until(lambda: server.sent)  # its session may be over already
        yield tasks
        await wait_until(lambda: not guard.sessions)


def counts(guard):
    snapshot = guard.snapshot()
    return snapshot["open"] + snapshot["leaving"], snapshot["leaving"], snapshot["leaving_refused"]


@pytest.mark.anyio
@pytest.mark.parametrize("handler", [stay, returns, close, crash])
async def test_session_closed_counts_until_its_transport_is_gone(handler):
    transport, guard = Transport(), Guard(Settings(max_sessions=1))
    async with running(handler, guard, Server(transport)):
        if handler is stay:
            [one] = guard.sessions
            await one.shed()
        await wait_until(lambda: counts(guard) == (1, 1, 0))
        await anyio.sleep(0.1)
        assert counts(guard) == (1, 1, 0)
        refused = await Peer().visit(CloseCodeMiddleware(returns, guard))
        assert refused.closed[0] == 1013
        transport.is_gone = True
    assert transport.aborts == 0
    assert counts(guard) == (0, 0, 0)


@pytest.mark.anyio
async def test_session_closed_is_aborted_after_the_close_timeout(monkeypatch):
    monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.05)
    transport, seen = Transport(), []
    guard = Guard(observers=[lambda event: seen.append(event) if isinstance(event, SessionAbandoned) else None])
    async with running(returns, guard, Server(transport)):
        pass
    assert transport.aborts == 1
    assert not seen


@pytest.mark.anyio
async def test_session_that_stays_held_is_abandoned_once(caplog):
    transport, seen = Deaf(), []
    guard = Guard(Settings(max_sessions=1, abandon_after=0.05), observers=[seen.append])
    async with running(returns, guard, Server(transport)):
        pass
    [event] = events_of(SessionAbandoned, seen)
    assert event.close.code == 1000
    assert event.after >= 0.05
    assert seen.index(event) < seen.index(*events_of(SessionClosed, seen))
    assert counts(guard) == (0, 0, 0)
    assert guard.gate.gates[-1].usage == 0
    assert "closecodes.session.abandoned" in {record.__dict__["event.name"] for record in caplog.records}


@pytest.mark.anyio
async def test_session_that_leaves_follows_a_changed_limit():
    transport, guard = Deaf(), Guard(Settings(max_sessions=1))
    async with running(returns, guard, Server(transport)):
        await wait_until(lambda: counts(guard) == (1, 1, 0))
        guard.update(abandon_after=0.01)
    assert counts(guard) == (0, 0, 0)


def test_session_abandoned_is_aborted_all_the_same(monkeypatch):
    """A second's patience with the count is none with the connection."""

    async def main():
        monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.3)
        transport, guard = Transport(), Guard(Settings(abandon_after=0.02))
        async with running(returns, guard, Server(transport)):
            pass
        assert transport.aborts == 0
        await wait_until(lambda: transport.aborts == 1)

    asyncio.run(main())


@pytest.mark.anyio
async def test_session_refused_counts_apart_until_it_is_gone():
    """Its application returns meanwhile: a wait for each would take a third of what a refusal takes."""
    transports = [Transport() for _ in range(250)]
    guard = Guard(Settings(max_sessions=0, reject_with="close", max_refusals_per_second=None))
    with anyio.fail_after(20):
        for transport in transports:
            await Server(transport).visit(CloseCodeMiddleware(stay, guard))
        assert counts(guard) == (0, 0, 250)
        for transport in transports[::2]:
            transport.is_gone = True
        await wait_until(lambda: counts(guard) == (0, 0, 125))
        for transport in transports:
            transport.is_gone = True
        await wait_until(lambda: counts(guard) == (0, 0, 0))
    assert not any(transport.aborts for transport in transports)


@pytest.mark.anyio
async def test_session_refused_is_aborted_after_the_close_timeout(monkeypatch):
    monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.05)
    transport, guard = Transport(), Guard(Settings(max_sessions=0))
    await Server(transport).visit(CloseCodeMiddleware(stay, guard))
    assert not transport.aborts
    await wait_until(lambda: counts(guard) == (0, 0, 0))
    assert transport.aborts == 1


@pytest.mark.anyio
async def test_sessions_refused_are_aborted_in_time_however_many(monkeypatch):
    monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(departure, "_MAX_CHECKS_PER_SECOND", 0.01)
    transports, guard = [Transport(), Transport()], Guard(Settings(max_sessions=0))
    for transport in transports:
        await Server(transport).visit(CloseCodeMiddleware(stay, guard))
    await wait_until(lambda: counts(guard) == (0, 0, 0))
    assert [transport.aborts for transport in transports] == [1, 1]


@pytest.mark.anyio
async def test_session_refused_that_stays_held_is_abandoned_once():
    seen = []
    guard = Guard(Settings(max_sessions=0, abandon_after=0.05), observers=[seen.append])
    await Server(Deaf()).visit(CloseCodeMiddleware(stay, guard))
    await wait_until(lambda: counts(guard) == (0, 0, 0))
    [event] = events_of(SessionAbandoned, seen)
    assert event.close.code == 1013
    assert event.after >= 0.05


def test_session_refused_is_aborted_where_its_task_is_cancelled(monkeypatch):
    async def main():
        monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.2)
        transport, guard = Transport(), Guard(Settings(max_sessions=0))
        before = asyncio.all_tasks()
        await Server(transport).visit(CloseCodeMiddleware(stay, guard))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - before:
            task.cancel()
        await wait_until(lambda: counts(guard) == (0, 0, 0))
        assert transport.aborts == 0
        await wait_until(lambda: transport.aborts == 1)

    asyncio.run(main())


def refused(guard, **scope):
    """An event loop in which a refused session departs."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    loop.run_until_complete(Server(Transport(), **scope).visit(CloseCodeMiddleware(stay, guard)))
    assert counts(guard) == (0, 0, 1)
    return loop


def test_session_refused_counts_no_more_without_its_loop():
    """Nor is it kept."""
    guard, state = Guard(Settings(max_sessions=0)), Transport()
    kept = weakref.ref(state)
    refused(guard, state=state).close()
    del state

    async def next_one():
        await Peer().visit(CloseCodeMiddleware(stay, guard))
        assert counts(guard) == (0, 0, 0)
        gc.collect()
        assert counts(guard) == (0, 0, 0)
        assert kept() is None

    asyncio.run(next_one())


def test_session_refused_counts_not_in_a_forked_child():
    guard = Guard(Settings(max_sessions=0))
    loop = refused(guard)
    child = os.fork()
    if not child:
        before = counts(guard)
        gc.collect()
        os._exit(before != (0, 0, 0) or counts(guard) != (0, 0, 0))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert counts(guard) == (0, 0, 1)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(wait_until(lambda: counts(guard) == (0, 0, 0)))
    loop.close()
    assert counts(guard) == (0, 0, 0)


@pytest.mark.anyio
async def test_session_refused_by_http_is_not_waited_for():
    guard = Guard(Settings(max_sessions=0, reject_with="http"))
    with anyio.fail_after(5):
        await Server(Transport()).visit(CloseCodeMiddleware(stay, guard))
    assert counts(guard) == (0, 0, 0)


@pytest.mark.anyio
async def test_wait_that_is_cancelled_stops_at_once():
    transport, guard = Transport(), Guard()
    async with running(returns, guard, Server(transport)) as tasks:
        await wait_until(lambda: counts(guard) == (1, 1, 0))
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await wait_until(lambda: not guard.sessions)


def test_wait_that_is_cancelled_leaves_the_abort_behind(monkeypatch):
    async def main():
        monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.2)
        transport, guard = Transport(), Guard()
        task = asyncio.create_task(Server(transport).visit(CloseCodeMiddleware(returns, guard)))
        await wait_until(lambda: counts(guard) == (1, 1, 0))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert counts(guard) == (0, 0, 0)
        assert transport.aborts == 0
        await wait_until(lambda: transport.aborts == 1)

    asyncio.run(main())


def test_session_cancelled_is_aborted_later(monkeypatch):
    async def main():
        monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.2)
        transport, guard = Transport(), Guard()
        task = asyncio.create_task(Server(transport).visit(CloseCodeMiddleware(stay, guard)))
        await wait_until(lambda: guard.sessions)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transport.aborts == 0
        await wait_until(lambda: transport.aborts == 1)

    asyncio.run(main())


class Slow(Transport):
    """One whose peer takes a byte at each look, up to the last."""

    def __init__(self, buffered, end):
        super().__init__(buffered)
        self.end = end

    def get_write_buffer_size(self):
        self.buffered = max(self.buffered - 1, 0)
        return self.buffered

    def get_extra_info(self, name, default=None):
        return self.end if name == "socket" else default


@pytest.mark.parametrize("handler", [returns, crash, close])
@pytest.mark.parametrize("buffered", [5, 10**6])
def test_close_waits_while_the_peer_reads(handler, buffered, monkeypatch):
    """An abort would take from a slow peer what the server alone delivers; but not for ever."""

    async def main():
        guard = Guard(Settings(abandon_after=60 if buffered == 5 else 0.3))
        with anyio.fail_after(20):
            await Stuck(transport).visit(CloseCodeMiddleware(handler, guard))

    monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.05)
    ends = socket.socketpair()
    with ends[0], ends[1]:
        transport = Slow(buffered, ends[0])
        asyncio.run(main())
    assert transport.aborts
    assert (transport.buffered == 0) == (buffered == 5)


class Stuck(Server):
    """Takes nothing more once the handshake is answered, as for a peer that does not read."""

    async def send(self, message):
        if message["type"] != "websocket.accept":
            while not self.transport.is_gone:
                await anyio.sleep(0.005)
            raise OSError
        await super().send(message)


@pytest.mark.anyio
@pytest.mark.parametrize("handler", [stay, returns, crash])
async def test_close_that_is_not_taken_ends_in_an_abort(handler, monkeypatch):
    monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.05)
    transport, guard = Transport(buffered=1), Guard()
    async with running(handler, guard, Stuck(transport)):
        for one in [*guard.sessions]:
            await one.shed()
    assert transport.aborts


def test_close_of_the_handlers_own_ends_in_an_abort_too(monkeypatch):
    async def main():
        monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.05)
        transport, guard = Transport(buffered=1), Guard()
        with anyio.fail_after(5):
            await Stuck(transport).visit(CloseCodeMiddleware(close, guard))
        assert transport.aborts
        assert counts(guard) == (0, 0, 0)

    asyncio.run(main())


# What a server hands over


def raising(*_arguments, **_options):
    raise RuntimeError("no")


class Raises:
    """An object whose attributes raise."""

    def __getattr__(self, name):
        raise RuntimeError(name)


class Lies(Transport):
    """Says one thing and does another; each answer is what ``said`` is."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def is_closing(self):
        return self.said

    get_write_buffer_size = get_extra_info = is_closing


class Cancels(Transport):
    def is_closing(self):
        raise asyncio.CancelledError

    abort = is_closing


class Property(Server):
    @property
    def transport(self):
        raise asyncio.CancelledError


UNUSABLE = {
    "none": None,
    "number": 5,
    "nothing": object(),
    "class": Transport,
    "raises": Raises(),
    "text": "transport",
    "cancels": Cancels(),
    "lies: closed": Lies(said=True),
    "lies: words": Lies(said="closed"),
    "lies: number": Lies(said=math.nan),
}


@pytest.mark.anyio
@pytest.mark.parametrize("transport", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("handler", [stay, returns, crash])
async def test_transport_that_cannot_be_believed_changes_nothing(transport, handler):
    guard = Guard(Settings(max_sessions=1, shed_grace=0.1))
    server = Server()
    server.transport = transport
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.visit, CloseCodeMiddleware(handler, guard))
            if handler is stay:
                await wait_until(lambda: server.sent)
                [one] = guard.sessions
                await one.shed()
    assert counts(guard) == (0, 0, 0)


@pytest.mark.anyio
async def test_transport_that_raises_where_it_is_looked_for_is_none():
    guard = Guard()
    with anyio.fail_after(10):
        await Property().visit(CloseCodeMiddleware(returns, guard))


def test_transport_is_not_believed_where_its_methods_raise():
    for name in ("is_closing", "get_write_buffer_size", "get_extra_info"):
        transport = Transport()
        transport.is_closing = lambda: True
        setattr(transport, name, raising)
        assert Connection(transport).is_held(is_closed_here=True) is False
    transport.abort = raising
    Connection(transport).abort()


class Layer:
    """A server over streams has its writer behind more layers, each with a ``send``."""

    def __init__(self, inner=None, **attributes):
        self._inner = inner
        if inner is not None:
            self.send = inner.take
        vars(self).update(attributes)

    async def take(self, message):
        pass


class Writer:
    def __init__(self, transport):
        self.transport = transport


def wrapped(send):
    @functools.wraps(send)
    async def outer(message):
        await send(message)

    return outer


def closed_over(call):
    async def caller(*message):
        return await call(*message)

    return caller


def test_connection_is_found_where_send_or_receive_leads_there():
    transport = Transport()
    protocol = Layer(transport=transport)
    assert type(connection_of(protocol.take, plain)) is Connection
    assert type(connection_of(wrapped(protocol.take), plain)) is Connection
    assert type(connection_of(closed_over(protocol.take), protocol.take)) is Connection
    streamed = Layer(Layer(Layer(writer=Writer(transport))))
    assert type(connection_of(streamed.take, plain)) is StreamConnection


def test_connection_of_others_is_not_followed():
    """Several applications share one behind closures: it is not aborted when one of them has closed."""
    protocol = Layer(transport=Transport())
    assert connection_of(closed_over(protocol.take), closed_over(protocol.take)) is None


async def plain(message):
    pass


CYCLE = Layer()
CYCLE.send = CYCLE.take


NOWHERE = [plain, None, 5, print, CYCLE.take, functools.partial(plain), Raises(), raising]


@pytest.mark.parametrize("call", NOWHERE, ids=range(len(NOWHERE)))
def test_connection_is_none_where_nothing_leads_there(call):
    assert connection_of(call, plain) is None
    assert connection_of(plain, call) is None


def below(*middleware):
    """Put the middleware of this library on a route, which Starlette wraps a ``send`` for, inside of ``middleware``."""

    def build(guard):
        async def endpoint(websocket):
            await websocket.accept()

        route = WebSocketRoute("/", endpoint, middleware=[Middleware(CloseCodeMiddleware, guard)])
        app = Starlette(routes=[route])
        for one in middleware:
            app = one(app)
        return app

    return build


OUTSIDE = {
    "route": below(),
    "mount": lambda guard: Starlette(routes=[Mount("/", CloseCodeMiddleware(returns, guard))]),
    "mount of FastAPI's": lambda guard: FastAPI(routes=[Mount("/", CloseCodeMiddleware(returns, guard))]),
    "correlation ids": below(CorrelationIdMiddleware),
}


@pytest.mark.anyio
@pytest.mark.parametrize("rate", [None, 100])
@pytest.mark.parametrize("build", OUTSIDE.values(), ids=OUTSIDE)
async def test_connection_is_found_behind_other_middleware(build, rate):
    transport, guard = Transport(), Guard(Settings(messages_per_second=rate))
    server = Server(transport, path="/", client=("203.0.113.5", 4001))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.visit, build(guard))
        await wait_until(lambda: len(server.sent) == 2)
        await anyio.sleep(0.02)
        assert counts(guard) == (1, 1, 0)
        transport.is_gone = True
    assert counts(guard) == (0, 0, 0)


@pytest.mark.anyio
async def test_session_of_a_middleware_inside_finds_the_transport():
    """The guard inside counts as long as the one outside."""
    transport, inside, outside = Transport(), Guard(), Guard()
    async with running(CloseCodeMiddleware(returns, inside), outside, Server(transport)):
        await wait_until(lambda: counts(inside) == (1, 1, 0))
        assert outside.sessions
        transport.is_gone = True
    assert counts(inside) == counts(outside) == (0, 0, 0)


def test_stream_keeps_a_connection_only_for_what_is_not_written():
    transport = Transport()
    connection = StreamConnection(transport)
    assert not connection.is_held(is_closed_here=True)
    transport.buffered = 5
    assert connection.is_held(is_closed_here=True)
    transport.abort()
    assert not connection.is_held(is_closed_here=True)


def test_connection_left_by_its_peer_is_held_while_it_is_flushed():
    transport = Transport(buffered=5)
    connection = Connection(transport)
    assert not connection.is_held(is_closed_here=False)  # the server is to close it
    transport.is_closing = lambda: True
    assert connection.is_held(is_closed_here=False)
    transport.buffered = 0
    assert not connection.is_held(is_closed_here=False)


# The decision alone

seconds = st.floats(0, 100)


@given(
    closed_at=seconds,
    abort_after=seconds,
    abandon_after=seconds,
    waited=seconds,
    waiting=st.integers(0, 10**6),
)
def test_departure_ends_in_time_whatever_happens(closed_at, abort_after, abandon_after, waited, waiting):
    """It aborts once, at its time and not before it, and it is over when it is abandoned at the latest."""
    now = closed_at + waited
    deadline = ProgressDeadline(Connection(None), abort_after, closed_at + abandon_after, closed_at)
    one = Departure(now, deadline, lambda: closed_at + abandon_after)
    aborted_at = None
    for _ in range(10_000):
        step = one.step(now, is_held=True)
        if step is Step.ABORT:
            assert aborted_at is None
            aborted_at = now
            assert not one.is_to_be_aborted
        elif step is Step.WAIT:
            delay = one.delay(now, waiting)
            assert 0 <= delay <= max(0.1, waiting / 2000)
            now = max(now + delay, math.nextafter(now, math.inf))
        else:
            break
    assert step is Step.ABANDON
    assert now == pytest.approx(max(closed_at + abandon_after, closed_at + waited))
    assert (aborted_at is not None) == (closed_at + abort_after <= now)
    assert aborted_at is None or aborted_at >= closed_at + abort_after
    assert one.step(now, is_held=False) is Step.GONE


ENDINGS = st.sampled_from([stay, returns, close, crash])
FATES = st.sampled_from(["gone", "aborted", "abandoned", "cancelled"])


@given(sessions=st.lists(st.tuples(ENDINGS, FATES, st.booleans()), min_size=1, max_size=6))
def test_counts_never_drift_whatever_becomes_of_a_connection(sessions):
    async def main():
        gate = MaxSessions(3)
        limits = Settings(max_sessions_per_client=2, when_client_full="replace_oldest", abandon_after=0.04)
        guard = Guard(limits, gate=gate)
        transports, tasks = [], []
        for handler, fate, has_left in sessions:
            transport = Deaf() if fate == "abandoned" else Transport()
            transport.is_gone = has_left
            server = Server(transport)
            transports.append((transport, fate))
            tasks.append(asyncio.create_task(server.visit(CloseCodeMiddleware(handler, guard))))
            for _ in range(5):
                await asyncio.sleep(0)
            [counted] = [one for one in guard.gate.gates if isinstance(one, MaxSessionsPerKey)]
            assert counted.active + len(counted._leaving.of("192.0.2.1")) <= 4
            assert gate.usage == len(guard.sessions) <= 3
            assert len(guard._leaving) <= len(guard.sessions)
        for one in [*guard.sessions]:
            one.schedule_close(TryAgainLater(cause="test"))
        for (transport, fate), task in zip(transports, tasks, strict=True):
            if fate == "gone":
                transport.is_gone = True
            elif fate == "cancelled":
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await wait_until(lambda: counts(guard) == (0, 0, 0))
        assert gate.usage == counted.active == len(counted._leaving) == len(guard.departures._waiting) == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.02)
        patch.setattr(departure, "_REFUSED_DELAY_S", 0.01)
        asyncio.run(main())
