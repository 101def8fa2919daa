"""The close of open sessions that somebody chooses."""

import asyncio
import threading

import anyio
import anyio.from_thread
import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.events import CallbackFailed, SessionShed
from asgi_closecodes.session import Session
from tests.support.asgi import Handler, Peer, events_of
from tests.support.fakes import ConnectedClients, StayingClient, wait_until


@pytest.mark.anyio
async def test_close_sessions_closes_those_that_are_chosen():
    seen = []
    guard = Guard(Settings(), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(5)
        for number, session in enumerate(guard.sessions):
            session.key = number % 2
        assert await guard.close_sessions(lambda session: session.key == 0, 3003, "banned") == 3
        assert await guard.close_sessions(lambda session: session.key == 0, 3003, "banned") == 0
        await wait_until(lambda: len(guard.sessions) == 2)
    assert [peer.closed for peer in stay.peers[::2]] == [(3003, "banned")] * 3
    assert [(event.cause, event.retry_after) for event in events_of(SessionShed, seen)] == [
        ("close_sessions", None)
    ] * 3
    assert guard.snapshot()["closes"][3003] == 3


@pytest.mark.anyio
async def test_close_sessions_from_a_handler_of_one_of_them():
    closed = []

    async def sign_out(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        closed.append(await guard.close_sessions(lambda session: True, 3000, "signed out"))

    guard = Guard(Settings())
    peer = await Peer().visit(CloseCodeMiddleware(sign_out, guard))
    assert (closed, peer.closed) == ([1], (3000, "signed out"))


def one_fails(session):
    if session.key == 1:
        raise ValueError("secret")
    return True


async def asynchronous(session):
    return True


def of_a_future(session):
    raise asyncio.CancelledError


@pytest.mark.anyio
@pytest.mark.parametrize(("where", "closed"), [(one_fails, 2), (asynchronous, 0), (of_a_future, 0)])
async def test_close_sessions_skips_what_the_predicate_fails_for(where, closed):
    """And says so once."""
    seen = []
    guard = Guard(Settings(), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(4)
        for number, session in enumerate(guard.sessions):
            session.key = number % 2
        assert await guard.close_sessions(where, 3000, "x") == closed
    [failed] = events_of(CallbackFailed, seen)
    assert failed.callback == f"where={where.__module__}.{where.__qualname__}"


@pytest.mark.anyio
@pytest.mark.parametrize("code", [1004, 1005, 1006, 1015, 999, 0, -1, 5000, True, "3000", 3000.0, None])
async def test_close_sessions_with_a_code_that_must_not_be_sent(code):
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        with pytest.raises(ValueError, match="must not be sent in a close frame; use 1000-1003"):
            await guard.close_sessions(lambda session: True, code, "x")
        with pytest.raises(TypeError, match="where must be a function"):
            await guard.close_sessions("everybody", 3000, "x")
        assert len(guard.sessions) == 1


@pytest.mark.anyio
async def test_close_sessions_cuts_a_long_reason():
    guard = Guard(Settings())
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        assert await guard.close_sessions(lambda session: True, 4000, "ü" * 100) == 1
    assert stay.peers[0].closed == (4000, "ü" * 61)


@pytest.mark.anyio
async def test_close_sessions_ends_at_most_25_a_turn(monkeypatch):
    turns, turn = [], [0]

    async def end(self, refusal):
        turn[0] += 1
        return True

    monkeypatch.setattr(Session, "end", end)
    guard = Guard(Settings())

    async def watch():
        while True:
            await anyio.lowlevel.checkpoint()
            turns.append(turn[0])
            turn[0] = 0

    async with ConnectedClients(guard) as stay:
        await stay.come(200)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            assert await guard.close_sessions(lambda session: True, 3000, "x") == 200
            tasks.cancel_scope.cancel()
    assert max(turns) <= 50


def test_close_sessions_of_other_event_loops():
    guard = Guard(Settings())
    peer = StayingClient(anyio.Event())

    async def close():
        with anyio.fail_after(10):
            while not peer.sent:
                await anyio.sleep(0.01)
            return await guard.close_sessions(lambda session: True, 3000, "signed out")

    with anyio.from_thread.start_blocking_portal() as portal:
        done = portal.start_task_soon(peer.visit, CloseCodeMiddleware(Handler(), guard))
        results = []
        thread = threading.Thread(target=lambda: results.append(anyio.run(close, backend="trio")))
        thread.start()
        thread.join(20)
        done.result(10)
    assert results == [1]
    assert peer.closed == (3000, "signed out")
