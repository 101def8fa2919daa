"""The key of a session is set from any thread."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.to_thread
import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, TryAgainLater, events
from asgi_closecodes.gates import MaxSessionsPerKey
from tests.support.asgi import Peer, events_of
from tests.support.fakes import wait_until


def plain_thread(call):
    """As a library does that has threads of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call)


async def in_a_plain_thread(call):
    future = None

    def run():
        nonlocal future
        future = plain_thread(call)

    await anyio.to_thread.run_sync(run)
    return future.result()


@pytest.mark.anyio
@pytest.mark.parametrize("thread", [in_a_plain_thread, anyio.to_thread.run_sync])
async def test_key_set_from_a_thread_counts(thread):
    gate = MaxSessionsPerKey(1, key=lambda session: session.key)
    seen = []

    async def app(scope, receive, send):
        await receive()
        session = scope["extensions"]["closecodes"]
        await thread(lambda: setattr(session, "key", "ann"))
        await send({"type": "websocket.accept"})
        seen.append(gate.active_of("ann"))

    guard = Guard(gate=gate)
    peer = await Peer().visit(CloseCodeMiddleware(app, guard))
    assert peer.closed[0] == 1000
    assert seen == [1]
    assert not gate.active_of("ann")


def test_key_set_by_to_thread_that_is_refused_is_1013():
    """What the gate raises comes back to the thread, and from it to the handler."""
    gate = MaxSessionsPerKey(0, key=lambda session: session.key)
    seen = []

    async def app(scope, receive, send):
        await receive()
        session = scope["extensions"]["closecodes"]
        try:
            await asyncio.to_thread(setattr, session, "key", "ann")
        except TryAgainLater as refusal:
            seen.append(refusal.cause)
            raise

    async def main():
        reported = []
        peer = await Peer().visit(CloseCodeMiddleware(app, Guard(gate=gate, observers=[reported.append])))
        assert not events_of(events.SessionFailed, reported)
        return peer

    assert asyncio.run(main()).closed[0] == 1013
    assert seen == ["client"]


def test_key_set_when_the_loop_has_ended_raises():
    kept = []

    async def app(scope, receive, send):
        await receive()
        session = scope["extensions"]["closecodes"]
        kept.append(session)
        await send({"type": "websocket.accept"})
        await asyncio.sleep(0)

    guard = Guard()
    loop = asyncio.new_event_loop()
    task = loop.create_task(Peer().visit(CloseCodeMiddleware(app, guard)))
    while not kept:
        loop.call_soon(loop.stop)
        loop.run_forever()
    failures = []

    def late():
        try:
            kept[0].key = "late"
        except RuntimeError as error:
            failures.append(error)

    loop.run_until_complete(task)
    loop.close()
    kept[0].permits = ()  # as if it had not ended with its loop
    thread = threading.Thread(target=late)
    thread.start()
    thread.join()
    assert failures


@pytest.mark.anyio
@pytest.mark.parametrize("when_full", ["refuse", "replace_oldest"])
async def test_key_set_by_one_that_ends_takes_no_permit(when_full):
    """What a handler that cleans up says of its user costs no session of that user its place."""
    gate = MaxSessionsPerKey(1, key=lambda session: session.key, when_full=when_full)
    guard, cleaned_up = Guard(gate=gate), anyio.Event()

    async def app(scope, receive, send):
        session = scope["extensions"]["closecodes"]
        name = scope["path"]
        session.key = name
        await receive()
        await send({"type": "websocket.accept"})
        if name == "bob":
            await cleaned_up.wait()
            return
        await session.shed()
        session.key = "bob"
        assert (gate.active_of("ann"), gate.active_of("bob")) == (1, 1)
        cleaned_up.set()

    bob, ann = Peer(path="bob"), Peer(path="ann")
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bob.visit, CloseCodeMiddleware(app, guard))
            await wait_until(lambda: gate.active_of("bob"))
            tasks.start_soon(ann.visit, CloseCodeMiddleware(app, guard))
    assert (ann.closed[0], bob.closed[0]) == (1013, 1000)
    assert cleaned_up.is_set()
    assert gate.active == 0
