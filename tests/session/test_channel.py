"""How a receive() that waits is cut off: everywhere, and never at the cost of somebody else's cancellation."""

import asyncio

import anyio
import anyio.lowlevel
import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.concurrency import on_asyncio
from asgi_closecodes.session.channel import Channel, Interruption
from tests.support.asgi import Peer
from tests.support.fakes import settle

GONE = {"type": "websocket.disconnect", "code": 1013}


class Queue:
    """A server's receive, as most have it."""

    def __init__(self):
        self.waiting = 0
        self.event = anyio.Event()

    async def receive(self):
        self.waiting += 1
        try:
            await self.event.wait()
            return {"type": "websocket.receive", "text": "x"}
        finally:
            self.waiting -= 1


@pytest.fixture
async def queue(anyio_backend):
    return Queue()


class Data(Channel):
    """A channel on which nothing but data goes."""

    def _on_control_message(self, message):
        raise AssertionError(message)

    async def _control(self, message):
        raise AssertionError(message)


def receive_of(channel):
    return channel._receive_on_asyncio if on_asyncio() else channel._receive_on_trio


def channel_of(queue):
    channel = Data(queue.receive, None)
    receive = receive_of(channel)
    return channel, receive


@pytest.mark.anyio
async def test_receive_interrupted_returns_once_then_waits(queue):
    channel, receive = channel_of(queue)
    heard = []

    async def listen():
        while True:
            heard.append(await receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        assert channel.is_received_from
        channel.interrupt_receive(Interruption(GONE))
        await anyio.wait_all_tasks_blocked()
        assert heard == [GONE]
        tasks.start_soon(listen)  # nor is there one for another task
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert heard == [GONE]
    assert queue.waiting == 0
    assert not channel.is_received_from
    assert channel.received == 0


@pytest.mark.anyio
async def test_receives_in_several_tasks_return(queue):
    channel, receive = channel_of(queue)
    heard = []

    async def listen():
        heard.append(await receive())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            assert queue.waiting == 3
            channel.interrupt_receive(Interruption(GONE))
    assert heard == [GONE] * 3


@pytest.mark.anyio
async def test_receive_that_has_not_started_yet_returns_too(queue):
    channel, receive = channel_of(queue)
    receiving = receive()
    channel.interrupt_receive(Interruption(GONE))
    with anyio.fail_after(5):
        assert await receiving == GONE


@pytest.mark.anyio
async def test_message_that_has_come_already_is_delivered_first(queue):
    channel, receive = channel_of(queue)
    heard = []

    async def listen():
        heard.append(await receive())
        heard.append(await receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        queue.event.set()
        channel.interrupt_receive(Interruption(GONE))
    assert heard[-1] == GONE


@pytest.mark.anyio
async def test_cancellation_at_the_same_moment_is_not_swallowed(queue):
    for first in ("cancel", "cut off"):
        channel, receive = channel_of(queue)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def listen(receive=receive):
                    await receive()
                    await anyio.lowlevel.checkpoint()
                    raise AssertionError("went on")

                tasks.start_soon(listen)
                await anyio.wait_all_tasks_blocked()
                for step in (first, "cut off" if first == "cancel" else "cancel"):
                    if step == "cancel":
                        scope.cancel()
                    else:
                        channel.interrupt_receive(Interruption(GONE))
                await anyio.sleep_forever()
        assert scope.cancelled_caught


@pytest.mark.parametrize("order", [("cancel", "cut_off"), ("cut_off", "cancel")])
def test_asyncio_task_cancelled_as_it_is_cut_off_stays_cancelled(order):
    """A task of asyncio that is cancelled at the same moment stays cancelled."""

    async def main():
        queue = Queue()
        channel, receive = channel_of(queue)

        async def listen():
            return await receive()

        task = asyncio.create_task(listen())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for step in order:
            if step == "cancel":
                task.cancel()
            else:
                channel.interrupt_receive(Interruption(GONE))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert queue.waiting == 0

    asyncio.run(main())


class Rust:
    """A future that is none of asyncio's, as granian's: anyio cancels its task even when it is done already."""

    _asyncio_future_blocking = False

    def __init__(self):
        self.future = asyncio.get_running_loop().create_future()
        self.get_loop = self.future.get_loop
        self.result = self.future.result

    def __await__(self):
        self._asyncio_future_blocking = True
        yield self
        return self.result()

    def add_done_callback(self, call, *, context=None):
        self.future.add_done_callback(lambda _future: call(self), context=context)

    def cancel(self, msg=None):
        return self.future.cancel()


def in_three_tasks(server_receive, act):
    """Return what three tasks of asyncio receive while ``act(channel, tasks)`` is done, and what was counted."""

    async def main():
        channel = Data(server_receive, None)
        receive = receive_of(channel)
        tasks = [asyncio.create_task(receive()) for _ in range(3)]
        await asyncio.sleep(0)
        await act(channel, tasks)
        _, waiting = await asyncio.wait(tasks, timeout=5)
        assert not waiting
        assert not channel.is_received_from
        return [None if task.cancelled() else task.result() for task in tasks], channel.received

    return asyncio.run(main())


def test_messages_for_several_interrupted_tasks_are_not_lost():
    """Nothing is lost of what the server has for several tasks as they are cut off."""
    on_their_way = []

    async def server_receive():
        on_their_way.append(rust := Rust())
        return await rust

    async def act(channel, _tasks):
        for number, rust in enumerate(on_their_way):
            rust.future.set_result({"type": "websocket.receive", "text": number})
        channel.interrupt_receive(Interruption(GONE))

    messages, received = in_three_tasks(server_receive, act)
    assert [message["text"] for message in messages] == [0, 1, 2]
    assert received == 3


def test_uncancellable_awaitables_of_many_tasks_end_later():
    """What cannot be cancelled now is cancelled later, in several tasks too."""

    class Borrowed(Rust):
        tries = 0

        def cancel(self, msg=None):
            self.tries += 1
            if self.tries < 3:
                raise RuntimeError("Already borrowed")
            return super().cancel(msg)

    async def server_receive():
        await Borrowed()

    async def act(channel, _tasks):
        interruption = Interruption(GONE)
        while not channel.interrupt_receive(interruption):
            await asyncio.sleep(0)

    assert in_three_tasks(server_receive, act) == ([GONE] * 3, 0)


@pytest.mark.parametrize("which", range(3))
def test_one_of_many_cancelled_as_it_is_cut_off_stays_cancelled(which):
    """One of several tasks that is cancelled as it is cut off stays cancelled."""

    async def act(channel, tasks):
        channel.interrupt_receive(Interruption(GONE))
        tasks[which].cancel()

    messages, _ = in_three_tasks(lambda: asyncio.sleep(60), act)
    assert messages == [None if number == which else GONE for number in range(3)]


def test_anyio_scope_cancelled_as_it_is_cut_off_catches_its_own():
    """A scope of anyio that is cancelled at the same moment knows its cancellation."""

    async def main():
        rust = Rust()
        scope = anyio.CancelScope()

        async def server_receive():
            await rust

        async def listen():
            with scope:
                await receive()

        channel = Data(server_receive, None)
        receive = receive_of(channel)
        task = asyncio.create_task(listen())
        while not channel.is_received_from:
            await asyncio.sleep(0)
        channel.interrupt_receive(Interruption(GONE))
        scope.cancel()
        await task
        assert scope.cancelled_caught
        assert not task.cancelling()

    asyncio.run(main())


def test_task_that_is_interrupted_is_not_cancelled():
    """asyncio counts cancellations, and time-outs and task groups look at the count."""

    async def main():
        channel, receive = channel_of(Queue())

        async def listen():
            async with asyncio.timeout(5):
                heard = await asyncio.wait_for(receive(), 5)
            return heard, asyncio.current_task().cancelling()

        task = asyncio.create_task(listen())
        while not channel.is_received_from:
            await asyncio.sleep(0)
        channel.interrupt_receive(Interruption(GONE))
        assert await task == (GONE, 0)

    asyncio.run(main())


@pytest.mark.anyio
async def test_application_returns_after_its_close_is_sent():
    """hypercorn closes the connection then, on trio before it has written what another task sends."""
    out = []

    class Hesitant(Peer):
        async def send(self, message):
            if message["type"] == "websocket.close":
                await anyio.sleep(0.05)
            out.append(message["type"])
            await super().send(message)

        async def receive(self):
            if len(self._says) == 1:
                await anyio.sleep_forever()
            return await super().receive()

    guard = Guard(Settings())

    async def handler(_scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        await anyio.sleep(0.01)  # the close is being sent by now

    async def visit():
        await Hesitant().visit(CloseCodeMiddleware(handler, guard))
        out.append("returned")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(visit)
        await settle()
        [session] = guard.sessions
        tasks.start_soon(session.shed)
    assert out == ["websocket.accept", "websocket.close", "returned"]


@pytest.mark.anyio
async def test_session_is_shed_once():
    guard = Guard(Settings())
    told = []

    async def handler(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        session = scope["extensions"]["closecodes"]
        told.append(await session.shed("first"))
        told.append(await session.shed("second"))
        assert (await receive())["code"] == 1013
        with pytest.raises(OSError, match="closed with 1013"):
            await send({"type": "websocket.send", "text": "x"})
        with pytest.raises(OSError, match="closed with 1013"):
            await send({"type": "websocket.close"})

    peer = await Peer().visit(CloseCodeMiddleware(handler, guard))
    assert told == [True, False]
    assert peer.closed[0] == 1013
    assert peer.closed[1].endswith("cause=first")


def test_uncancellable_awaitable_is_cancelled_a_little_later():
    """An object of Rust's, as granian's, may be in use by another thread for a moment."""

    class Borrowed:
        def __init__(self):
            self.future = asyncio.get_running_loop().create_future()
            self.attempts = 0

        def __await__(self):
            return Waiting(self)

    class Waiting:
        def __init__(self, borrowed):
            self.borrowed = borrowed
            self.inner = iter(borrowed.future)

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.inner)

        def send(self, value):
            return self.inner.send(value)

        def throw(self, *error):
            return self.inner.throw(*error)

        def cancel(self):
            self.borrowed.attempts += 1
            if self.borrowed.attempts < 3:
                raise RuntimeError("Already borrowed")
            self.borrowed.future.cancel()

    async def main():
        guard = Guard(Settings(shed_grace=5))
        borrowed = Borrowed()

        class Rusty(Peer):
            async def receive(self):
                if len(self._says) == 1:
                    await borrowed
                return await super().receive()

        async def handler(_scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            assert (await receive())["code"] == 1013

        peer = Rusty()
        visit = asyncio.create_task(peer.visit(CloseCodeMiddleware(handler, guard)))
        while not peer.sent:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        [session] = guard.sessions
        await session.shed()
        await asyncio.wait_for(visit, 2)
        assert borrowed.attempts == 3
        assert peer.closed[0] == 1013

    asyncio.run(main())
