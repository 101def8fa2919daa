"""What observers are told: how a session went, and, where they ask, how things stand."""

import gc
import threading

import anyio
import anyio.lowlevel
import pytest

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Guard, Settings, TryAgainLater
from asgi_closecodes.events import (
    CallbackFailed,
    SessionAdmitted,
    SessionClosed,
    SessionFailed,
    SessionOpened,
    SessionRefused,
)
from asgi_closecodes.gates import HandshakeRate, MaxSessions, Pressure, Shadow
from tests.support.asgi import Handler, Peer, events_of
from tests.support.fakes import ConnectedClients, FakeSensor, wait_until

# How a session went


def gate_state(name, cause, usage, limit, *, shadow=False):
    return {"name": name, "cause": cause, "usage": usage, "limit": limit, "shadow": shadow}


class Slow:
    """A gate that takes 20 ms."""

    def __init__(self, error=None):
        self.error = error

    def admit(self, _session):
        return self

    async def __aenter__(self):
        await anyio.sleep(0.02)
        if self.error is not None:
            raise self.error

    async def __aexit__(self, *error):
        pass


@pytest.mark.anyio
async def test_time_that_the_gates_took():
    seen = []
    await Peer().visit(CloseCodeMiddleware(Handler(), Guard(gate=Slow(), observers=[seen.append])))
    [admitted] = events_of(SessionAdmitted, seen)
    assert admitted.session.duration >= 0.019
    assert admitted.session.phase == "connecting"
    kinds = [type(event) for event in seen if hasattr(event, "session")]
    assert kinds == [SessionAdmitted, SessionOpened, SessionClosed]


@pytest.mark.anyio
async def test_refused_session_is_not_admitted():
    seen = []
    gate = Slow(TryAgainLater(cause="slow"))
    await Peer().visit(CloseCodeMiddleware(Handler(), Guard(gate=gate, observers=[seen.append])))
    [refused] = events_of(SessionRefused, seen)
    assert refused.session.duration >= 0.019
    assert not events_of(SessionAdmitted, seen)
    assert not events_of(SessionClosed, seen)


async def close(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 4000})


async def deny(scope, receive, send):
    await receive()
    await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b""})


async def crash_at_once(scope, receive, send):
    raise ValueError


async def leave_at_once(scope, receive, send):
    await receive()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("handler", "outcome"),
    [
        (Handler(), "completed"),
        (close, "completed"),
        (Handler(CloseWith(4000)), "completed"),
        (Handler(TryAgainLater()), "completed"),
        (Handler(ValueError()), "failed"),
        (Handler(ExceptionGroup("several", [ValueError()])), "failed"),
        (crash_at_once, "failed"),
        (deny, "not_accepted"),
        (leave_at_once, "not_accepted"),
    ],
)
async def test_outcome_of_a_session(handler, outcome):
    seen = []
    await Peer().visit(CloseCodeMiddleware(handler, Guard(observers=[seen.append])))
    [closed] = events_of(SessionClosed, seen)
    assert closed.outcome == outcome
    assert len(events_of(SessionFailed, seen)) == (outcome == "failed")


@pytest.mark.anyio
@pytest.mark.parametrize(("then", "outcome"), [(None, "shed"), (ValueError(), "failed")])
async def test_session_that_was_shed(then, outcome):
    seen = []

    async def handler(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        if then is not None:
            raise then

    guard = Guard(observers=[seen.append])
    async with ConnectedClients(guard, handler) as stay:
        await stay.come(1)
        await next(iter(guard.sessions)).shed()
    assert [event.outcome for event in events_of(SessionClosed, seen)] == [outcome]


@pytest.mark.anyio
async def test_session_closed_is_not_opened_afterwards():
    """A task of the handler's that it did not wait for may still be accepting when the session is over."""
    seen, is_accepting, go_on = [], anyio.Event(), anyio.Event()

    class Sluggish(Peer):
        async def send(self, message):
            if message["type"] == "websocket.accept":
                is_accepting.set()
                await go_on.wait()
            await super().send(message)

    async def handler(scope, receive, send):
        await receive()
        tasks.start_soon(send, {"type": "websocket.accept"})
        await is_accepting.wait()
        raise ValueError

    async with anyio.create_task_group() as tasks:
        await Sluggish().visit(CloseCodeMiddleware(handler, Guard(observers=[seen.append])))
        assert events_of(SessionClosed, seen)
        go_on.set()
    assert not events_of(SessionOpened, seen)


# How things stand


class Watcher:
    def __init__(self, error=None):
        self.seen = []
        self.samples = 0
        self.error = error

    def __call__(self, event):
        self.seen.append(event)

    def watch(self, snapshot):
        self.snapshot = snapshot

    def sample(self):
        self.samples += 1
        if self.error is not None:
            raise self.error


class Odd:
    """A gate whose numbers are none."""

    limit = "much"

    @property
    def usage(self):
        raise ValueError("a bug")

    def admit(self, _session):
        raise NotImplementedError


@pytest.mark.anyio
async def test_watcher_sees_how_the_gates_stand_now():
    watcher = Watcher()
    guard = Guard(Settings(max_sessions=5, shadow="max_sessions", max_sessions_per_client=3), observers=[watcher])
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        assert watcher.snapshot()["gates"] == [
            gate_state("max_sessions_per_client", "client", 2, 3),
            gate_state("max_sessions", "full", 2, 5, shadow=True),
        ]
        guard.update(max_sessions=1)
        assert watcher.snapshot()["gates"][-1]["limit"] == 1
        assert not watcher.snapshot()["draining"]
        await guard.drain(0)
        assert watcher.snapshot()["draining"]
    assert watcher.snapshot()["gates"][-1]["usage"] == 0


@pytest.mark.parametrize(
    ("gate", "state"),
    [
        (Pressure(FakeSensor(0.25), 0.5, 0.2), gate_state("dial", "dial", 0.25, 0.5)),
        (Shadow(Pressure(FakeSensor(None), 0.5, 0.2)), gate_state("dial", "dial", None, 0.5, shadow=True)),
        (HandshakeRate(5), gate_state("handshake_rate", "rate", None, 5)),
        (Odd(), gate_state("odd", "shed", None, None)),
    ],
)
def test_snapshot_of_other_gates(gate, state):
    watcher = Watcher()
    guard = Guard(gate=gate, observers=(one for one in [watcher]))
    seen = []
    elsewhere = threading.Thread(target=lambda: seen.append(watcher.snapshot()))
    elsewhere.start()
    elsewhere.join()
    assert seen[0]["gates"][-1] == state
    assert seen[0]["loop_lag"] is None
    assert guard.gate


def test_watcher_does_not_keep_the_guard():
    watcher = Watcher()
    guard = Guard(gate=MaxSessions(1), observers=[watcher])
    assert watcher.snapshot()["gates"][-1]["name"] == "max_sessions"
    del guard
    gc.collect()
    assert watcher.snapshot() is None


@pytest.mark.anyio
async def test_watcher_is_sampled_and_sees_a_stall(monkeypatch):
    monkeypatch.setattr("asgi_closecodes.guard.ticker.LINGER_S", 0.2)
    watcher = Watcher()
    guard = Guard(Settings(), observers=[watcher])
    async with ConnectedClients(guard) as stay:
        assert not guard._ticker.is_running
        await stay.come(1)
        await wait_until(lambda: watcher.samples > 1)
        threading.Event().wait(0.4)  # in the event loop's thread, which is the fault
        assert watcher.snapshot()["loop_lag"] >= 0.2
        samples = watcher.samples
        await wait_until(lambda: watcher.samples > samples + 2)
        assert watcher.snapshot()["loop_lag"] >= 0.2
    await wait_until(lambda: not guard._ticker.is_running)
    assert watcher.snapshot()["loop_lag"] is None


@pytest.mark.anyio
async def test_watcher_that_fails_is_reported_once():
    watcher = Watcher(ValueError("a bug"))
    guard = Guard(Settings(), observers=[watcher])
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        await wait_until(lambda: watcher.samples > 2)
    assert [event.callback for event in events_of(CallbackFailed, watcher.seen)] == ["Watcher.sample"]
