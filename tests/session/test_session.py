"""An application that does anything in any order, and a strict ASGI referee where the server would be.

The referee fails on every message that ASGI does not allow at that point; at the end the connection must have
been closed exactly once, and every place in the gate given back.
"""

import asyncio
import contextlib
import gc
import io
import logging
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.websockets import WebSocketDisconnect

from asgi_closecodes import Close, CloseCodeMiddleware, CloseWith, Guard, Settings, TryAgainLater
from asgi_closecodes.codes import may_be_sent
from asgi_closecodes.events import SessionClosed, SessionRefused
from asgi_closecodes.exceptions import leaves
from asgi_closecodes.gates import MaxSessions
from asgi_closecodes.logs import configure_logging
from asgi_closecodes.session import protocol
from tests.support.asgi import Handler, Peer, events_of
from tests.support.clocks import run_without_waiting
from tests.support.fakes import settle

pytestmark = pytest.mark.jumping_clock


class Fouls(AssertionError):
    """The middleware sent what no server may be sent."""


@dataclass(frozen=True)
class ServerKind:
    denial: bool = True
    refuses_codes: bool = False
    """Raises for a close code that daphne does not know."""
    after_departure: str = "OSError"
    stuck_when: int | None = None
    """The number of the message that it never finishes: a peer that does not read."""


@dataclass
class Referee:
    kind: ServerKind
    phase: str = "connecting"
    peer_left: bool = False
    ended: int = 0
    sent: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.queue = [{"type": "websocket.connect"}]
        self.queued = anyio.Event()

    def tell(self, message):
        self.queue.append(message)
        self.queued.set()

    def leave(self):
        if not self.peer_left and self.phase != "done":
            self.peer_left = True
            self.tell({"type": "websocket.disconnect", "code": 1001, "reason": "bye"})

    async def receive(self):
        await anyio.lowlevel.checkpoint()
        while not self.queue:
            self.queued = anyio.Event()
            await self.queued.wait()
        return self.queue.pop(0)

    async def send(self, message):
        self.sent.append(message)
        if not self.peer_left:
            self.judge(message)  # first: servers act, and then wait for the network
        if self.kind.stuck_when == len(self.sent):
            await anyio.sleep_forever()
        if not self.peer_left:
            await anyio.lowlevel.checkpoint()
        elif self.kind.after_departure == "OSError":
            raise ConnectionResetError("the peer has left")

    def judge(self, message):
        match self.phase, message["type"]:
            case "connecting", "websocket.accept":
                self.phase = "open"
            case "connecting", "websocket.close":
                self.end()
            case "connecting", "websocket.http.response.start" if self.kind.denial:
                assert 400 <= message["status"] < 600
                self.phase = "denying"
            case "denying", "websocket.http.response.body":
                if not message.get("more_body", False):
                    self.end()
            case "open", "websocket.send":
                pass
            case "open", "websocket.close":
                code, reason = message.get("code", 1000), message.get("reason") or ""
                if self.kind.refuses_codes and not (code == 1000 or 3000 <= code <= 4999):
                    raise Exception(f"invalid close code {code}")  # noqa: TRY002 - as a server does
                if not may_be_sent(code) or len(reason.encode()) > 123:
                    raise Fouls(message)
                self.end()
            case _:
                raise Fouls(f"{message} while {self.phase}")

    def end(self):
        self.phase = "done"
        self.ended += 1
        self.tell({"type": "websocket.disconnect", "code": 1006})


closes = st.fixed_dictionaries(
    {"type": st.just("websocket.close")},
    optional={
        "code": st.one_of(st.none(), st.sampled_from([1000, 1005, 1006, 1011, 1013, 4000, 70000, -1, True, "x"])),
        "reason": st.one_of(st.none(), st.text(max_size=200), st.lists(st.text()), st.binary(max_size=5)),
    },
)
errors = st.sampled_from(
    [
        lambda: ValueError("secret"),
        lambda: WebSocketDisconnect(1001),
        lambda: CloseWith(4001, "as asked"),
        lambda: CloseWith(1006, "as asked"),
        lambda: TryAgainLater(cause="db"),
        lambda: OSError("a file"),
        lambda: KeyError("mapped"),
        lambda: ExceptionGroup("g", [ValueError("secret"), CloseWith(4001)]),
        lambda: ExceptionGroup("g", [CloseWith(4001), ExceptionGroup("h", [CloseWith(4001)])]),
        lambda: ExceptionGroup("g", [WebSocketDisconnect()]),
    ]
)
steps = st.one_of(
    st.sampled_from(
        ["receive", "receive and wait", "peer leaves", "return", "cancel", "concurrent sends", "shed", "shed me"]
    ),
    st.tuples(st.just("raise"), errors),
    st.tuples(
        st.sampled_from(["send", "send and shrug"]),
        st.one_of(
            st.just({"type": "websocket.accept"}),
            st.just({"type": "websocket.accept"}),
            st.just({"type": "websocket.send", "text": "x"}),
            st.just({"type": "websocket.http.response.start", "status": 403, "headers": []}),
            st.just({"type": "websocket.http.response.start", "status": 503, "headers": [(b"retry-after", b"7")]}),
            st.just({"type": "websocket.http.response.body", "body": b"", "more_body": True}),
            st.just({"type": "websocket.http.response.body", "body": b""}),
            st.just({"type": "nonsense"}),
            closes,
        ),
    ),
)
kinds = st.builds(
    ServerKind,
    denial=st.booleans(),
    refuses_codes=st.booleans(),
    after_departure=st.sampled_from(["OSError", "silence"]),
    stuck_when=st.one_of(st.none(), st.integers(1, 4)),
)


class Application:
    """Plays ``script``; a step that raises ends it, as an exception ends a handler, unless it shrugs."""

    def __init__(self, script, referee):
        self.script = script
        self.referee = referee
        self.cancel = None

    async def __call__(self, scope, receive, send):
        for step in self.script:
            match step:
                case "receive":
                    with anyio.move_on_after(0):
                        await receive()
                case "receive and wait":
                    with anyio.move_on_after(0.02):
                        await receive()
                case "shed":
                    self.tasks.start_soon(scope["extensions"]["closecodes"].shed)
                case "shed me":
                    await scope["extensions"]["closecodes"].shed()
                case "peer leaves":
                    self.referee.leave()
                case "return":
                    return
                case "cancel":
                    self.cancel()
                    await anyio.sleep_forever()
                case "concurrent sends":
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(send, {"type": "websocket.send", "text": "1"})
                        tasks.start_soon(send, {"type": "websocket.close"})
                case "raise", error:
                    raise error()
                case "send", message:
                    await send(message)
                case "send and shrug", message:
                    with contextlib.suppress(Exception):
                        await send(message)


async def play(script, kind, handshake, gate_full):
    referee = Referee(kind)
    app = Application(script, referee)
    gate = MaxSessions(0 if gate_full else 1)
    guard = Guard(
        Settings(reject_with=handshake, shed_grace=0.01), gate=gate, exceptions={KeyError: Close(4002, "mapped")}
    )
    middleware = CloseCodeMiddleware(app, guard)
    extensions = {"websocket.http.response": {}} if kind.denial else None
    scope = {"type": "websocket", "asgi": {}, "path": "/", "headers": [], "subprotocols": [], "extensions": extensions}
    escaped = None
    async with anyio.create_task_group() as app.tasks:
        with anyio.CancelScope() as cancel_scope:
            app.cancel = cancel_scope.cancel
            try:
                await middleware(scope, referee.receive, referee.send)
            except Exception as error:
                escaped = error
    return referee, guard, gate, escaped


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(
    script=st.lists(steps, max_size=8),
    kind=kinds,
    handshake=st.sampled_from(["close", "http", "auto"]),
    gate_full=st.booleans().filter(bool) | st.just(False) | st.just(False),
)
@example([("send", {"type": "websocket.accept"}), "cancel"], ServerKind(), "close", False)
@example([("raise", lambda: ValueError("secret"))], ServerKind(), "http", False)
@example(
    [("send", {"type": "websocket.accept"}), ("raise", lambda: ValueError("x"))],
    ServerKind(refuses_codes=True),
    "close",
    False,
)
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_server_is_sent_what_asgi_allows_and_one_close(backend, script, kind, handshake, gate_full):
    """A server is only sent what ASGI allows, and closed exactly once."""

    async def main():
        # Where a message is never finished, the handler itself may be the one that waits for it.
        with anyio.move_on_after(60):
            return await play(script, kind, handshake, gate_full)

    outcome = run_without_waiting(main, backend)
    if outcome is None:
        assert kind.stuck_when is not None
        return
    referee, guard, gate, escaped = outcome
    assert not any(isinstance(leaf, Fouls) for leaf in leaves(escaped or ValueError()))
    assert not guard.sessions
    assert gate.usage == 0
    assert not any(place.usage for place in guard.gate.gates)
    if escaped is not None:
        assert kind.refuses_codes, "only a server that refuses 1011 is left to say it by itself"
    elif not referee.peer_left and kind.stuck_when is None:
        assert referee.ended == 1, f"still {referee.phase} after {referee.sent}"
    assert referee.ended <= 1


class _Refusing:
    """A gate that fails, or refuses, as it is told to."""

    def __init__(self, *error):
        self.error = error

    @contextlib.asynccontextmanager
    async def admit(self, session):
        raise self.error[0](*self.error[1:])
        yield


class _Dooming:
    @contextlib.asynccontextmanager
    async def admit(self, session):
        await session.shed()
        yield


_ENDINGS = {
    "fine": (Settings(max_sessions=1), None, None),
    "failed": (Settings(max_sessions=1), None, lambda: ValueError("no")),
    "failed and passed on": (Settings(reraise=True), None, lambda: ValueError("no")),
    "closed": (Settings(max_sessions=1), None, lambda: CloseWith(4000)),
    "cancelled": (Settings(max_sessions=1), None, asyncio.CancelledError),
    "full": (Settings(max_sessions=0), None, None),
    "full, by HTTP": (Settings(max_sessions=0, reject_with="http"), None, None),
    "client": (Settings(max_sessions_per_client=0), None, None),
    "setup": (Settings(max_handshakes_in_progress=0), None, None),
    "rate": (Settings(handshakes_per_second=0), None, None),
    "shadow": (Settings(max_sessions=0, shadow="all"), None, None),
    "gate failed open": (Settings(), lambda: _Refusing(ValueError, "no"), None),
    "gate failed closed": (Settings(gate_failure="closed"), lambda: _Refusing(ValueError, "no"), None),
    "own gate": (Settings(max_sessions=1), lambda: _Refusing(TryAgainLater), None),
    "own gate, in a group": (
        Settings(max_sessions=1),
        lambda: _Refusing(lambda: ExceptionGroup("", [TryAgainLater()])),
        None,
    ),
    "own gate, cancelled": (Settings(max_sessions=1), lambda: _Refusing(asyncio.CancelledError), None),
    "ended in a gate": (Settings(max_sessions=1), _Dooming, None),
}


@contextlib.contextmanager
def no_collections():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("ending", _ENDINGS)
def test_session_that_is_over_needs_no_garbage_collector(ending, monkeypatch):
    """What a server hands out goes with the last reference: granian closes the socket only then."""
    settings, gate, error = _ENDINGS[ending]

    async def handler(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        if error is not None:
            raise error()

    # Not through pytest, which keeps all records.
    monkeypatch.setattr(logging.getLogger("asgi_closecodes"), "propagate", False)
    configure_logging("json", stream=io.StringIO(), level="DEBUG")

    async def visit():
        peer = Peer("x")
        with contextlib.suppress(ValueError, asyncio.CancelledError):
            await peer.visit(CloseCodeMiddleware(handler, Guard(settings, gate=gate and gate())))
        return weakref.ref(peer)

    with no_collections():
        assert asyncio.run(visit())() is None


def test_session_cancelled_twice_needs_no_garbage_collector():
    async def twice():
        peer = Slow()
        task = asyncio.create_task(peer.visit(CloseCodeMiddleware(Handler(), Guard(Settings(max_sessions=1)))))
        for _ in range(2):  # the second time while the last word is said
            await asyncio.sleep(0.02)
            task.cancel()
        await asyncio.wait([task])
        return weakref.ref(peer)

    class Slow(Peer):
        async def receive(self):
            if len(self._says) == 1:
                await asyncio.sleep(60)
            return await super().receive()

        async def send(self, message):
            await super().send(message)
            await asyncio.sleep(0.1 if message["type"] == "websocket.close" else 0)

    with no_collections():
        assert asyncio.run(twice())() is None


def test_handler_overstaying_after_a_swallowed_cancel_is_ended():
    """A gate has swallowed a cancellation, as code of users' does: the task counts as cancelled from then on."""

    class Deaf:
        @contextlib.asynccontextmanager
        async def admit(self, session):
            sessions.append(session)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            yield

    async def overstay(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(60)

    async def visit():
        guard = Guard(Settings(shed_grace=0.02), gate=Deaf())
        peer = Peer()
        task = asyncio.create_task(peer.visit(CloseCodeMiddleware(overstay, guard)))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.sleep(0.02)
        await sessions[0].shed()
        assert (await task).closed[0] == 1013
        assert task.cancelling() == 1

    sessions = []
    asyncio.run(visit())


def test_whoever_asks_for_the_id_of_a_session_is_told_the_same():
    """A thread of the handler's asks while the event loop reports."""
    guard = Guard(Settings())
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            for _ in range(300):
                session = guard.session({"type": "websocket"}, None, None)
                gate = threading.Barrier(2)
                assert (
                    len(set(threads.map(lambda _, gate=gate, session=session: (gate.wait(), session.id)[1], range(2))))
                    == 1
                )
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.anyio
@pytest.mark.parametrize("code", ["bye", None, 1000.0, b"1001"])
async def test_departure_without_a_number_is_one_without_a_code(code):
    guard = Guard(Settings())
    peer = Peer()
    peer._says[-1] = {"type": "websocket.disconnect", "code": code}
    await peer.visit(CloseCodeMiddleware(Handler(), guard))
    assert (len(guard.sessions), guard.snapshot()["closes"]) == (0, {1005: 1})


def test_session_thrown_away_with_its_event_loop_ends_quietly():
    """As at the end of a process whose server has not waited for it."""

    class Stays(Peer):
        async def receive(self):
            if len(self._says) == 1:
                await anyio.sleep_forever()
            return await super().receive()

    async def begin():
        peer = Stays()
        visit = CloseCodeMiddleware(Handler(), guard)(peer.scope, peer.receive, peer.send)
        while "accept" not in peer.heard:
            visit.send(None)
        return visit

    guard = Guard(Settings(max_sessions=1))
    visit = asyncio.run(begin())
    visit.close()
    assert not guard.sessions
    assert guard.snapshot()["gates"][0]["usage"] == 0


@pytest.mark.anyio
async def test_refusal_that_is_cancelled_is_reported():
    events = []

    async def stuck():
        if peer.sent:
            await anyio.sleep_forever()

    peer = Peer(point=stuck)
    app = CloseCodeMiddleware(Handler(), Guard(Settings(max_sessions=0), observers=[events.append]))
    with anyio.move_on_after(0.05) as scope:
        await peer.visit(app)
    assert scope.cancelled_caught
    assert len(events_of(SessionRefused, events)) == 1


@pytest.mark.anyio
async def test_session_cancelled_waiting_in_a_gate_is_closed():
    """A session that is cancelled while it waits in a gate is told."""

    class Slow:
        @contextlib.asynccontextmanager
        async def admit(self, session):
            await anyio.sleep_forever()
            yield

    peer = Peer()
    with anyio.move_on_after(0.01) as scope:
        await peer.visit(CloseCodeMiddleware(Handler(), Guard(Settings(), gate=Slow())))
    assert scope.cancelled_caught
    assert peer.heard == ["accept", "close"]
    assert peer.closed[0] == 1012


@pytest.mark.anyio
async def test_session_cancelled_in_a_gate_beside_a_failure_is_closed():
    """A session that is cancelled in a gate is told, where something else fails at once."""

    class Slow:
        @contextlib.asynccontextmanager
        async def admit(self, session):
            try:
                await anyio.sleep_forever()
            except BaseException as cancellation:
                raise BaseExceptionGroup("as trio's nurseries do", [cancellation, ValueError("no")]) from None
            yield

    peer = Peer()
    with pytest.raises(BaseExceptionGroup) as raised:
        with anyio.move_on_after(0.01):
            await peer.visit(CloseCodeMiddleware(Handler(), Guard(Settings(), gate=Slow())))
    assert "ValueError" in repr(raised.value)
    assert peer.closed[0] == 1012


@pytest.mark.parametrize("of_a_gate", [True, False])
@pytest.mark.parametrize("slow", ["handler", "refusal"])
def test_scope_cancelled_as_a_timeout_expires_catches_its_own(slow, of_a_gate, monkeypatch):
    """anyio's scopes know their cancellation by what it says, and asyncio merges two of one turn."""
    monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.01)

    async def main():
        async def last_too_long():
            try:
                await anyio.sleep_forever()
            finally:  # the timeout has expired
                scope.cancel()

        async def handler(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            if slow == "refusal":
                raise TryAgainLater
            await scope["extensions"]["closecodes"].shed()
            await asyncio.gather(last_too_long())  # in a task of its own, as what waits for the cancelled one

        async def stuck():
            if slow == "refusal" and "close" in peer.heard:
                await asyncio.gather(last_too_long())

        class Limited:
            @contextlib.asynccontextmanager
            async def admit(self, session):
                with scope:
                    yield

        scope = anyio.CancelScope()
        peer = Peer(point=stuck)
        with contextlib.nullcontext() if of_a_gate else scope:
            gate = Limited() if of_a_gate else None
            await peer.visit(CloseCodeMiddleware(handler, Guard(Settings(shed_grace=0.01), gate=gate)))
        assert scope.cancelled_caught
        assert asyncio.current_task().cancelling() == 0
        assert peer.closed[0] == 1013

    asyncio.run(main())


def test_so_does_one_whose_last_word_was_cut_short_twice(monkeypatch):
    monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.05)

    async def main():
        async def stuck():
            if peer.sent:
                await anyio.sleep_forever()

        peer = Peer(point=stuck)
        app = CloseCodeMiddleware(Handler(), Guard(Settings(max_sessions=0, reject_with="http")))
        with anyio.move_on_after(0.01) as scope:  # in the shielded second attempt the timeout expires too
            await peer.visit(app)
        assert scope.cancelled_caught
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())


@pytest.mark.anyio
@pytest.mark.parametrize("waits", [True, False])
async def test_handler_shed_before_it_receives_finds_connect_first(waits, caplog):
    """Starlette takes a disconnect that comes first for a bug of the server's."""
    seen = []

    async def handler(scope, receive, send):
        if not waits:
            await scope["extensions"]["closecodes"].shed()
        seen.extend([await receive() for _ in range(2)])

    async def stuck():
        if not peer.sent:
            await anyio.sleep_forever()

    guard = Guard(Settings())
    peer = Peer(point=stuck) if waits else Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.visit, CloseCodeMiddleware(handler, guard))
        if waits:
            await settle()
            await next(iter(guard.sessions)).shed()
    assert [message["type"] for message in seen] == ["websocket.connect", "websocket.disconnect"]
    assert peer.closed[0] == 1013
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("said", "client"),
    [
        (("192.0.2.1", 50000), ("192.0.2.1", 50000)),
        (["192.0.2.1", "50000"], ("192.0.2.1", 50000)),  # granian's port
        (("::1", 50000, 0, 0), ("::1", 50000)),
        (("192.0.2.1", None), ("192.0.2.1", 0)),
        (("", "0"), None),  # granian on a unix socket
        (None, None),
    ],
)
async def test_client_of_any_server_is_an_address_and_a_port(said, client):
    seen = []
    await Peer(client=said).visit(CloseCodeMiddleware(Handler(), Guard(Settings(), observers=[seen.append])))
    assert events_of(SessionClosed, seen)[0].session.client == client
