"""Each ending is told truthfully: by whose socket it came, and without keeping the event loop."""

import asyncio
import contextlib
import functools
import logging

import anyio
import pytest
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Guard, Settings, TryAgainLater, events
from asgi_closecodes.logs import ConsoleFormatter, JsonFormatter
from tests.support.asgi import Peer, events_of
from tests.support.fakes import settle

pytestmark = pytest.mark.jumping_clock


class Staying(Peer):
    """A peer that stays until ``gone`` is set; what is sent to it then raises ``raises``, if it is given."""

    def __init__(self, raises=None, **scope):
        super().__init__(**scope)
        self.gone = anyio.Event()
        self.raises = raises

    async def receive(self):
        if len(self._says) == 1:
            await self.gone.wait()
        return await super().receive()

    async def send(self, message):
        if self.gone.is_set() and self.raises is not None:
            raise self.raises
        await super().send(message)


async def receive_for_ever(receive, send):
    while True:
        await receive()


async def poll_for_ever(receive, send):
    while True:
        with anyio.move_on_after(0.001):
            await receive()


async def receive_twice(receive, send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive_for_ever, receive, send)
        tasks.start_soon(receive_for_ever, receive, send)


async def receive_in_tasks(receive, send):
    while True:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)


async def send_and_swallow(receive, send):
    while True:
        with contextlib.suppress(OSError):
            await send({"type": "websocket.send", "text": "x"})


async def close_and_swallow(receive, send):
    await receive()
    while True:
        with contextlib.suppress(OSError, RuntimeError):
            await send({"type": "websocket.close", "code": 1000})


async def misuse_and_swallow(receive, send):
    await receive()
    while True:
        with contextlib.suppress(OSError, RuntimeError):
            await send({"type": "websocket.nonsense"})


HANDLERS = [
    receive_for_ever,
    poll_for_ever,
    receive_twice,
    receive_in_tasks,
    send_and_swallow,
    close_and_swallow,
    misuse_and_swallow,
]


@pytest.mark.anyio
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("by", ["shed", "drain"])
async def test_session_ended_leaves_the_loop_free(handler, by):
    """Whatever a handler does with its disconnect, others run, and the grace period ends it."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await handler(receive, send)

    guard = Guard(Settings(shed_grace=0.2))
    peer = Staying()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.visit, CloseCodeMiddleware(app, guard))
        while not guard.sessions or not peer.sent:
            await anyio.sleep(0)
        for _ in range(5):
            await anyio.sleep(0)
        [session] = guard.sessions
        if by == "shed":
            await session.shed()
        else:
            await guard.drain(0)
        while guard.sessions:
            await anyio.sleep(0.001)
    closes = [message["code"] for message in peer.sent if message["type"] == "websocket.close"]
    assert closes == [1013 if by == "shed" else 1012]
    assert not guard.snapshot()["errors"]


@pytest.mark.anyio
async def test_receive_cancelled_as_it_is_interrupted_is_told_later():
    """A disconnect counts as told only when receive() returned it."""
    seen = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        with anyio.CancelScope() as scope_:
            scopes.append(scope_)
            seen.append(await receive())
        seen.append(await receive())

    scopes = []
    guard = Guard()
    peer = Staying()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.visit, CloseCodeMiddleware(app, guard))
        while not scopes:
            await anyio.sleep(0)
        await settle()
        scopes[0].cancel()
        await next(iter(guard.sessions)).shed()
    assert [message["type"] for message in seen] == ["websocket.disconnect"]


class Room:
    """Members whose speaker broadcasts when its ``speaks`` is set."""

    def __init__(self):
        self.members = []
        self.speaks = anyio.Event()

    async def __call__(self, scope, receive, send):
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        self.members.append(websocket)
        if scope["path"] == "/speaker":
            await self.speaks.wait()
            for member in self.members:
                if member is not websocket:
                    await member.send_text("hello")
        else:
            await anyio.sleep_forever()


class Wrapping:
    """Middleware outside, which hands over a ``send`` of its own."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, self.wrapped(send))

    async def passed_on(self, message, send):
        await send(message)


class Closure(Wrapping):
    def wrapped(self, send):
        async def sender(message):
            await self.passed_on(message, send)

        return sender


class Partial(Wrapping):
    def wrapped(self, send):
        return functools.partial(self.passed_on, send=send)


class RawRoom(Room):
    """A room that sends by the members' own ``send``, whose OSError Starlette does not replace."""

    async def __call__(self, scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        self.members.append(WebSocket(scope, receive, send))
        if scope["path"] != "/speaker":
            self.send = send
            await anyio.sleep_forever()
        await self.speaks.wait()
        await self.send({"type": "websocket.send", "text": "hello"})


@pytest.mark.anyio
@pytest.mark.parametrize("around", [lambda app: app, Closure, Partial], ids=["nothing", "closure", "partial"])
@pytest.mark.parametrize("room", [Room, RawRoom])
@pytest.mark.parametrize("how", ["shed", "left"])
async def test_broadcast_to_a_member_that_is_gone_is_a_failure(how, room, around):
    """The departure of another session's peer is this handler's failure."""
    room, seen = room(), []
    guard = Guard(Settings(shed_grace=0.05), observers=[seen.append])
    app = around(CloseCodeMiddleware(room, guard))
    member, speaker = Staying(raises=ConnectionResetError(), path="/member"), Staying(path="/speaker")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(member.visit, app)
        while not room.members:
            await anyio.sleep(0)
        tasks.start_soon(speaker.visit, app)
        while len(room.members) < 2:
            await anyio.sleep(0)
        if how == "shed":
            await room.members[0].scope["extensions"]["closecodes"].shed()
        else:
            member.gone.set()
        room.speaks.set()
        while "close" not in speaker.heard:
            await anyio.sleep(0)
        tasks.cancel_scope.cancel()
    assert speaker.closed[0] == 1011
    [failure] = events_of(events.SessionFailed, seen)
    assert failure.of_another_session
    assert failure.session.path == "/speaker"


async def close_in_finally(websocket):
    try:
        await websocket.receive_text()
    finally:
        await websocket.close()


async def receive_without_a_branch(websocket):
    while True:
        await websocket.receive()


async def send_in_except(websocket):
    try:
        await websocket.receive_text()
    except WebSocketDisconnect:
        await websocket.send_json({"error": "gone"})


async def close_after_own_send_failed(websocket):
    await websocket.receive()
    try:
        await websocket.send_text("x")
    finally:
        await websocket.close()


async def broadcast_with_itself(websocket):
    """As in the README: the speaker is a member, too."""
    for _ in range(2):
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await websocket.send_text("x")
    async for text in websocket.iter_text():
        raise AssertionError(text)


async def send_on_after_own_send_failed(websocket):
    with contextlib.suppress(WebSocketDisconnect):
        await websocket.send_text("x")
    await websocket.send_text("y")


CLEAN_UPS = [
    close_in_finally,
    receive_without_a_branch,
    send_in_except,
    close_after_own_send_failed,
    broadcast_with_itself,
    send_on_after_own_send_failed,
]


@pytest.mark.anyio
@pytest.mark.parametrize("clean_up", CLEAN_UPS)
@pytest.mark.parametrize("raises", [None, OSError, RuntimeError], ids=["none", "os", "rt"])
async def test_clean_up_after_the_peer_left_is_no_failure(clean_up, raises):
    async def app(scope, receive, send):
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        await clean_up(websocket)

    seen = []
    peer = Staying(raises=raises)
    peer.gone.set()
    # Accepting succeeds; what comes after it does not.
    send = peer.send

    async def accepts(message):
        await (Peer.send(peer, message) if message["type"] == "websocket.accept" else send(message))

    peer.send = accepts
    await peer.visit(CloseCodeMiddleware(app, Guard(observers=[seen.append])))
    assert not events_of(events.SessionFailed, seen)


async def receive_before_accept(websocket):
    await websocket.receive_text()


async def send_before_accept(websocket):
    await websocket.send_text("x")


async def fail_in_clean_up(websocket):
    await websocket.accept()
    try:
        await websocket.receive_text()
    except WebSocketDisconnect:
        raise LookupError from None


async def file_in_clean_up(websocket):
    await websocket.accept()
    try:
        await websocket.receive_text()
    finally:
        raise OSError("a file")


async def send_after_own_close(websocket):
    await websocket.accept()
    await websocket.close(4000)
    await websocket.send_text("x")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "misuse", [receive_before_accept, send_before_accept, fail_in_clean_up, file_in_clean_up, send_after_own_close]
)
async def test_misuse_stays_a_failure(misuse):
    async def app(scope, receive, send):
        await misuse(WebSocket(scope, receive, send))

    seen = []
    await Peer().visit(CloseCodeMiddleware(app, Guard(observers=[seen.append])))
    [failure] = events_of(events.SessionFailed, seen)
    assert not failure.of_another_session


class Disconnected(RuntimeError):
    """As autobahn's."""


@pytest.mark.anyio
async def test_disconnected_of_the_own_send_is_a_departure():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        peer.gone.set()
        await send({"type": "websocket.send", "text": "x"})

    seen = []
    peer = Staying(raises=Disconnected("Attempt to send on a closed protocol"))
    await peer.visit(CloseCodeMiddleware(app, Guard(observers=[seen.append])))
    assert not events_of(events.SessionFailed, seen)


@pytest.mark.anyio
async def test_failure_after_own_close_names_that_close():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1003})
        raise LookupError

    seen = []
    guard = Guard(observers=[seen.append])
    await Peer().visit(CloseCodeMiddleware(app, guard))
    [failure] = events_of(events.SessionFailed, seen)
    assert failure.close.code == 1003
    assert guard.snapshot()["closes"] == {1003: 1}


@pytest.mark.anyio
async def test_failure_answered_by_http_names_no_close():
    async def app(scope, receive, send):
        await receive()
        raise LookupError

    seen = []
    guard = Guard(Settings(reject_with="http"), observers=[seen.append])
    peer = await Peer().visit(CloseCodeMiddleware(app, guard))
    [failure] = events_of(events.SessionFailed, seen)
    assert peer.status == 500
    assert failure.close is None
    assert guard.snapshot()["closes"] == {}


@pytest.mark.anyio
async def test_close_taken_as_its_twin_is_named():
    """daphne takes 4013 where it refuses 1013."""

    class Daphne(Staying):
        async def send(self, message):
            if message["type"] == "websocket.close" and message["code"] < 3000:
                raise ValueError("must be 1000 or from [3000, 4999]")
            await super().send(message)

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    seen = []
    guard = Guard(observers=[seen.append])
    peer = Daphne()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.visit, CloseCodeMiddleware(app, guard))
        await settle()
        await next(iter(guard.sessions)).shed()
    [shed] = events_of(events.SessionShed, seen)
    assert shed.close.code == 4013
    assert guard.snapshot()["closes"] == {4013: 1}


@pytest.mark.parametrize("group", [False, True])
def test_cancellation_nobody_asked_for_is_a_failure(group):
    """A shared future that somebody cancels is a failure like any other."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        try:
            await future
        except asyncio.CancelledError as error:
            if group:
                raise BaseExceptionGroup("g", [error]) from None
            raise

    seen = []

    async def main():
        return await Peer().visit(CloseCodeMiddleware(app, Guard(observers=[seen.append])))

    assert asyncio.run(main()).closed[0] == 1011
    assert events_of(events.SessionFailed, seen)


def nested(depth):
    error = ValueError("deep")
    for _ in range(depth):
        error = ExceptionGroup("g", [error])
    return error


class Causes(Exception):
    __cause__ = "text"


class Raises(Exception):
    @property
    def __traceback__(self):
        raise ZeroDivisionError

    @property
    def __class__(self):
        raise ZeroDivisionError


class Lies(Exception):
    __traceback__ = 5
    __context__ = 7
    __module__ = None
    __class__ = str


class Touchy(Exception):
    def __getattribute__(self, name):
        raise ZeroDivisionError(name)


class Unhashable(type):
    def __hash__(cls):
        raise ZeroDivisionError

    def __getattribute__(cls, name):
        raise ZeroDivisionError(name)


class Odd(Exception, metaclass=Unhashable):
    pass


@pytest.mark.anyio
@pytest.mark.parametrize(
    "make",
    [lambda: nested(1200), lambda: Causes(), lambda: Raises(), lambda: Lies(), lambda: Touchy(), lambda: Odd()],
    ids=["deep", "cause", "raises", "lies", "touchy", "odd"],
)
async def test_hostile_exception_is_closed_and_reported(make, caplog):
    """A ref that the client gets is in the log, whatever the exception is."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        raise make()

    guard = Guard()
    peer = await Peer().visit(CloseCodeMiddleware(app, guard))
    code, reason = peer.closed
    assert code == 1011
    ref = reason.partition("ref=")[2]
    [record] = [record for record in caplog.records if getattr(record, "closecodes.error.id", None) == ref]
    for formatter in (logging.Formatter(), JsonFormatter(), ConsoleFormatter()):
        assert ref in formatter.format(record)
    assert guard.snapshot()["errors"] == 1


@pytest.mark.anyio
@pytest.mark.parametrize("code", [10**5000, -1, 1006, True, "x", None, 1e300], ids=lambda code: type(code).__name__)
async def test_close_with_a_code_nobody_may_send_is_reported(code, caplog):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        raise CloseWith(code)

    peer = await Peer().visit(CloseCodeMiddleware(app, Guard()))
    assert peer.closed[0] == 1011
    names = [getattr(record, "event.name", None) for record in caplog.records]
    assert names.count("closecodes.session.close_repaired") == 1
    assert "closecodes.callback.failed" not in names


def test_cancelled_future_of_a_gate_is_its_failure():
    """Nobody has cancelled the session: the gate has failed, and the setting decides."""

    class Gate:
        def admit(self, session):
            return self

        async def __aenter__(self):
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        async def __aexit__(self, *error):
            pass

    async def main():
        seen = []
        guard = Guard(gate=Gate(), observers=[seen.append])

        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})

        peer = await Peer().visit(CloseCodeMiddleware(app, guard))
        return peer, seen

    peer, seen = asyncio.run(main())
    assert peer.closed[0] == 1000
    assert events_of(events.GateFailed, seen)


class Raising:
    """An attribute that raises, whatever is done with it."""

    def __get__(self, instance, owner):
        if instance is None:
            return self
        raise ZeroDivisionError

    def __set__(self, instance, value):
        pass

    def __eq__(self, other):
        raise ZeroDivisionError

    __hash__ = None


def broken(base, name):
    return type("Broken", (base,), {name: Raising()})


def with_attribute(name):
    refusal = TryAgainLater()
    setattr(refusal, name, Raising())
    return refusal


BROKEN = {
    "code": lambda: broken(CloseWith, "code")(4000),
    "status": lambda: broken(CloseWith, "status")(4000),
    "reason": lambda: broken(CloseWith, "reason")(4000),
    "reason of a refusal": lambda: broken(TryAgainLater, "reason_with")(),
    "status of a refusal": lambda: broken(TryAgainLater, "status")(),
    "gate of a refusal": lambda: broken(TryAgainLater, "gate")(),
    "code that was set": lambda: with_attribute("code"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("place", ["before accept", "open", "mapped"])
@pytest.mark.parametrize("kind", BROKEN)
async def test_close_that_cannot_be_read_is_a_failure(kind, place, caplog):
    """What looks at it raises; somebody has to close even so."""

    async def app(scope, receive, send):
        await receive()
        if place != "before accept":
            await send({"type": "websocket.accept"})
        raise LookupError if place == "mapped" else BROKEN[kind]()

    seen = []
    guard = Guard(observers=[seen.append], exceptions={LookupError: lambda error: BROKEN[kind]()})
    peer = await Peer().visit(CloseCodeMiddleware(app, guard))
    assert peer.closed[0] == 1011
    [failed] = events_of(events.SessionFailed, seen)
    assert failed.error_id in peer.closed[1]
    assert guard.snapshot()["closes"] == {1011: 1}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [kind for kind in BROKEN if "refusal" in kind or "set" in kind])
async def test_refusal_that_cannot_be_read_refuses(kind):
    class Gate:
        def admit(self, session):
            refusal = BROKEN[kind]()
            raise refusal

    async def app(scope, receive, send):
        raise AssertionError("was admitted")

    seen = []
    peer = await Peer().visit(CloseCodeMiddleware(app, Guard(gate=Gate(), observers=[seen.append])))
    assert peer.closed[0] == 1013
    assert events_of(events.SessionRefused, seen)


@pytest.mark.anyio
@pytest.mark.parametrize("stalled", ["websocket.accept", "websocket.close"])
async def test_crash_cancelled_as_it_closes_is_told_and_recorded(stalled):
    """Where the error does not travel on, a cancellation takes its place; the peer and the log have it all the same."""

    async def app(scope, receive, send):
        raise ValueError

    async def point():
        if peer.sent and peer.sent[-1]["type"] == stalled:
            await anyio.sleep_forever()

    told = []
    peer = Peer(point=point)
    guard = Guard(observers=[told.append])
    with anyio.fail_after(5), anyio.move_on_after(0.05) as scope:
        await peer.visit(CloseCodeMiddleware(app, guard))
    assert scope.cancelled_caught
    assert peer.closed[0] == 1011
    assert len(events_of(events.SessionFailed, told)) == guard.snapshot()["errors"] == 1
    assert not guard.sessions


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio runs the tasks of a turn in any order
@pytest.mark.anyio
async def test_shed_while_a_departure_is_in_doubt_keeps_its_close():
    """The handler's error may be a departure; in the turn in which that is found out another one ends the session."""
    guard = Guard(Settings(), observers=[(seen := []).append])
    sessions = []

    async def handler(scope, receive, send):
        sessions.append(scope["extensions"]["closecodes"])
        await receive()
        await send({"type": "websocket.accept"})
        guard.spawn(sessions[0].shed)
        raise WebSocketDisconnect(1001)  # of no socket that is known

    peer = Staying()
    await CloseCodeMiddleware(handler, guard)(peer.scope, peer.receive, peer.send)
    assert peer.closed[0] == 1013
    [closed] = events_of(events.SessionClosed, seen)
    assert (closed.close.code, closed.closed_by, closed.outcome) == (1013, "middleware", "shed")


class LateNotice(Peer):
    """A server that notices in the next turn of its event loop that it has answered by HTTP, as uvicorn does."""

    has_noticed = False

    async def send(self, message):
        self.sent.append(message)
        if message["type"] == "websocket.http.response.body":
            asyncio.get_running_loop().call_soon(setattr, self, "has_noticed", True)


async def deny(scope, receive, send):
    await send({"type": "websocket.http.response.start", "status": 401})
    await send({"type": "websocket.http.response.body", "body": b""})


async def deny_and_fail(scope, receive, send):
    await send({"type": "websocket.http.response.start", "status": 401})
    raise ValueError


@pytest.mark.parametrize(("handler", "places"), [(deny, 1), (deny_and_fail, 1), (deny, 0)])
def test_denial_returns_only_when_the_server_knows(handler, places):
    """Otherwise uvicorn logs that the application has returned without completing the handshake."""

    async def main():
        guard = Guard(Settings(max_sessions=places, reject_with="http"))
        peer = await LateNotice().visit(CloseCodeMiddleware(handler, guard))
        assert peer.heard == ["http.response.start", "http.response.body"]
        assert peer.has_noticed

    asyncio.run(main())
