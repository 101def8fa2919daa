"""An error that somebody has caught ends the session as if its handler had raised it."""

import asyncio
import contextlib
import gc
import logging
import threading
import weakref

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocketDisconnect

from asgi_closecodes import Close, CloseCodeMiddleware, CloseWith, Guard, Settings, TryAgainLater, events
from tests.support.asgi import Peer, events_of
from tests.support.fakes import StayingClient
from tests.support.framework import installed

pytestmark = pytest.mark.anyio


class Mapped(Exception):
    pass


class Run:
    """One session of ``handler(session, receive, send)``, accepted before, unless ``accept`` is False."""

    def __init__(self, handler, *, accept=True, settings=None, exceptions=None, peer=None):
        self.seen = []
        self.guard = Guard(settings or Settings(), exceptions=exceptions, observers=[self.seen.append])
        self.handler, self.accept = handler, accept
        self.peer = peer or StayingClient(anyio.Event())
        self.returned = []

    async def __call__(self, scope, receive, send):
        self.session = scope["extensions"]["closecodes"]
        await receive()
        if self.accept:
            await send({"type": "websocket.accept"})
        self.returned.append(await self.handler(self.session, receive, send))

    async def visit(self):
        await self.peer.visit(CloseCodeMiddleware(self, self.guard))
        assert not self.guard.sessions
        return self

    @property
    def failures(self):
        return events_of(events.SessionFailed, self.seen)

    @property
    def outcome(self):
        [closed] = events_of(events.SessionClosed, self.seen)
        return closed.outcome


async def raised(error):
    try:
        raise error
    except Exception as caught:
        return caught


def failing(error):
    """Return a handler that gives ``error`` to ``session.fail()``, and returns."""

    async def handler(session, receive, send):
        return await session.fail(await raised(error))

    return handler


async def test_fail_error_is_1011_and_one_record(caplog):
    run = await Run(failing(ValueError("secret"))).visit()
    [failure] = run.failures
    assert run.peer.closed == (1011, f"internal error; ref={failure.error_id}")
    assert run.returned == [True]
    assert run.outcome == "failed"
    assert (failure.close, failure.close_sent) == (Close(*run.peer.closed), True)
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


@pytest.mark.parametrize(
    ("error", "close"),
    [
        (CloseWith(4001, "as asked"), (4001, "as asked")),
        (TryAgainLater(cause="db", retry_after=2), (1013, "try again later; retry_after=2.0; cause=db")),
        (Mapped(), (4002, "mapped")),
        (ExceptionGroup("", [Mapped(), Mapped()]), (4002, "mapped")),
    ],
)
async def test_fail_deliberate_error_is_its_close(error, close):
    run = await Run(failing(error), exceptions={Mapped: Close(4002, "mapped")}).visit()
    assert run.peer.closed == close
    assert run.failures == []
    assert run.outcome == "completed"


async def test_fail_before_accept_is_refused_as_by_raising():
    run = await Run(failing(ValueError()), accept=False).visit()
    assert run.peer.heard == ["accept", "close"]
    assert run.peer.closed[0] == 1011
    run = await Run(failing(ValueError()), accept=False, settings=Settings(reject_with="http")).visit()
    assert run.peer.status == 500


async def test_fail_own_departure_is_no_failure():
    async def handler(session, receive, send):
        while (message := await receive())["type"] != "websocket.disconnect":
            pass
        return await session.fail(await raised(WebSocketDisconnect(message["code"])))

    run = await Run(handler, peer=Peer()).visit()
    assert run.failures == []
    assert run.peer.heard == ["accept"]


async def test_fail_error_after_departure_is_one_record():
    async def handler(session, receive, send):
        await receive()
        return await session.fail(await raised(ValueError()))

    run = await Run(handler, peer=Peer()).visit()
    [failure] = run.failures
    assert not failure.close_sent
    assert run.peer.heard == ["accept"]


async def test_fail_handler_sees_disconnect_and_cannot_send():
    async def handler(session, receive, send):
        await session.fail(ValueError())
        message = await receive()
        for kind in ("websocket.close", "websocket.close"):  # as a framework does after it has told
            await send({"type": kind})
        with pytest.raises(OSError, match="was closed with 1011"):
            await send({"type": "websocket.send", "text": "late"})
        return message["type"], message["code"]

    run = await Run(handler).visit()
    assert run.returned == [("websocket.disconnect", 1011)]
    assert run.peer.heard == ["accept", "close"]


@pytest.mark.parametrize("grace", [0, 0.01])
@pytest.mark.parametrize(("error", "code"), [(ValueError, 1011), (Mapped, 4002)])
async def test_fail_handler_that_goes_on_is_cancelled(grace, error, code):
    async def handler(session, receive, send):
        await session.fail(error())
        await anyio.sleep_forever()

    run = await Run(handler, settings=Settings(shed_grace=grace), exceptions={Mapped: 4002}).visit()
    assert run.peer.heard == ["accept", "close"]
    assert run.peer.closed[0] == code
    assert len(run.failures) == (error is ValueError)


class Granian(StayingClient):
    """A server that drops what it sends when the sender is cancelled."""

    async def send(self, message):
        await anyio.sleep(0.01)
        await super().send(message)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # in which no cancel scope keeps out task.cancel()
@pytest.mark.parametrize("accept", [False, True])
async def test_fail_cancelled_by_its_framework_closes(accept):
    """Quart cancels the handler, and so its hook, as soon as receive() says that the session ends."""

    async def handler(session, receive, send):
        async def listen():
            while (await receive())["type"] != "websocket.disconnect":
                pass

        tasks = [asyncio.create_task(one) for one in (session.fail(ValueError()), listen())]
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    run = await Run(handler, accept=accept, peer=Granian(anyio.Event())).visit()
    assert run.peer.closed[0] == 1011
    assert len(run.failures) == 1


async def raise_it(session, error):
    raise error


async def raise_in_group(session, error):
    raise ExceptionGroup("", [error])


async def raise_from(session, error):
    raise RuntimeError from error


async def fail_again(session, error):
    assert not await session.fail(error)


async def fail_with_another(session, error):
    assert not await session.fail(KeyError())


@pytest.mark.parametrize("then", [raise_it, raise_in_group, raise_from, fail_again, fail_with_another])
@pytest.mark.parametrize("error", [ValueError, Mapped, lambda: ExceptionGroup("", [ValueError()])])
async def test_fail_and_then_the_same_is_told_once(then, error):
    async def handler(session, receive, send):
        caught = await raised(error())
        await session.fail(caught)
        await then(session, caught)

    run = await Run(handler, exceptions={Mapped: 4002}).visit()
    assert run.peer.heard == ["accept", "close"]
    assert len(run.failures) == (error is not Mapped)


async def test_fail_and_then_another_error_is_two_records():
    """A crash that has nothing to do with what was told does not hide behind it."""

    async def handler(session, receive, send):
        await session.fail(ValueError())
        raise KeyError

    run = await Run(handler).visit()
    assert [type(failure.exception) for failure in run.failures] == [ValueError, KeyError]
    assert run.peer.heard == ["accept", "close"]


async def test_fail_in_child_task_ends_receiving_handler():
    async def handler(session, receive, send):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.fail, ValueError())
            return (await receive())["code"]

    run = await Run(handler).visit()
    assert run.returned == [1011]
    assert len(run.failures) == 1


async def test_fail_in_several_tasks_is_one_record():
    async def handler(session, receive, send):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(session.fail, ValueError())

    run = await Run(handler).visit()
    assert len(run.failures) == 1
    assert run.peer.heard == ["accept", "close"]


async def test_fail_in_cancelled_task_is_closed_and_told():
    async def handler(session, receive, send):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await session.fail(ValueError())
        await anyio.sleep(0)

    run = await Run(handler).visit()
    assert run.peer.closed[0] == 1011
    assert len(run.failures) == 1


async def from_worker_thread(session, error):
    return await anyio.to_thread.run_sync(anyio.from_thread.run, session.fail, error)


async def from_another_loop(session, error):
    def run(backend):
        returned.append(anyio.run(session.fail, error, backend=backend))

    returned = []
    for backend in ("asyncio", "trio"):  # the second time it is no news
        thread = threading.Thread(target=run, args=(backend,))
        thread.start()
        while thread.is_alive():
            await anyio.sleep(0.001)
    assert returned == [True, False]
    return returned[0]


@pytest.mark.parametrize("call", [from_worker_thread, from_another_loop])
async def test_fail_in_another_thread_ends_the_session(call):
    async def handler(session, receive, send):
        return await call(session, ValueError())

    run = await Run(handler).visit()
    assert run.returned == [True]
    assert run.peer.closed[0] == 1011
    assert len(run.failures) == 1


@pytest.mark.parametrize("nothing", [None, "text", ValueError, 1011, asyncio.CancelledError(), KeyboardInterrupt()])
async def test_fail_no_exception_is_a_type_error(nothing):
    async def handler(session, receive, send):
        with pytest.raises(TypeError, match=r"session\.fail\("):
            await session.fail(nothing)

    run = await Run(handler).visit()
    assert run.peer.closed == (1000, "")


async def test_fail_after_the_end_does_nothing():
    async def handler(session, receive, send):
        pass

    run = await Run(handler).visit()
    assert not await run.session.fail(ValueError())
    assert run.failures == []
    assert run.peer.heard == ["accept", "close"]


async def test_fail_in_a_gate_does_nothing():
    """A gate refuses by raising."""

    class Failing:
        def admit(self, session):
            return self.enter(session)

        @contextlib.asynccontextmanager
        async def enter(self, session):
            told.append(await session.fail(ValueError()))
            yield

    told = []
    peer = Peer()
    await peer.visit(CloseCodeMiddleware(plain(lambda *_: anyio.sleep(0)), Guard(Settings(), gate=Failing())))
    assert told == [False]
    assert peer.closed == (1000, "")


async def test_fail_after_close_is_told_with_that_close():
    async def handler(session, receive, send):
        await send({"type": "websocket.close", "code": 1003})
        await session.fail(ValueError())

    run = await Run(handler).visit()
    [failure] = run.failures
    assert (failure.close.code, failure.close_sent) == (1003, False)
    assert run.peer.heard == ["accept", "close"]


async def test_fail_after_shed_is_told_with_that_close():
    async def handler(session, receive, send):
        await session.shed("kicked")
        await session.fail(ValueError())

    run = await Run(handler).visit()
    [failure] = run.failures
    assert failure.close.code == run.peer.closed[0] == 1013


async def test_fail_where_1011_is_refused_is_4011():
    """No server closes by itself here, as daphne does where it sees the error."""

    class Refusing(StayingClient):
        async def send(self, message):
            if message.get("code") == 1011:
                raise ValueError("must be 1000 or from [3000, 4999]")
            await super().send(message)

    run = await Run(failing(ValueError()), peer=Refusing(anyio.Event())).visit()
    [failure] = run.failures
    assert run.peer.closed[0] == failure.close.code == 4011


@pytest.mark.parametrize("error", [ValueError(), Mapped()])
async def test_fail_with_reraise_raises_only_failures(error):
    run = Run(failing(error), settings=Settings(reraise=True), exceptions={Mapped: 4002})
    if isinstance(error, Mapped):
        await run.visit()
    else:
        with pytest.raises(ValueError) as caught:
            await run.visit()
        assert caught.value is error


async def test_fail_leaves_no_cycle(monkeypatch):
    monkeypatch.setattr(logging.getLogger("asgi_closecodes"), "propagate", False)  # pytest keeps all records
    sessions = []

    async def handler(session, receive, send):
        sessions.append(weakref.ref(session))
        try:
            raise ValueError
        except ValueError as error:
            await session.fail(error)

    gc.collect()
    gc.disable()
    try:
        guard = Guard(Settings())
        await StayingClient(anyio.Event()).visit(CloseCodeMiddleware(plain(handler), guard))
        assert sessions[0]() is None
    finally:
        gc.enable()


def plain(handler):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await handler(scope["extensions"]["closecodes"], receive, send)

    return app


# What a framework has caught


def raising(error, how="run", close=installed["close"]):
    """Return a handler of a framework that catches the ``error`` that it raises."""

    async def handler(session, receive, send):
        async def run():
            raise error

        await installed[how](run, send, close)

    return handler


CAUGHT = [
    (CloseWith(4001, "as asked"), (4001, "as asked")),
    (TryAgainLater(cause="db", retry_after=2), (1013, "try again later; retry_after=2.0; cause=db")),
    (Mapped(), (4002, "mapped")),
    (ExceptionGroup("", [CloseWith(4001, "as asked")]), (4001, "as asked")),
]
LEFT_ALONE = [ValueError(), HTTPException(403), WebSocketException(1008, "other")]


@pytest.mark.parametrize("how", ["run", "wrap_and_run"])
@pytest.mark.parametrize(("error", "close"), CAUGHT)
async def test_caught_deliberate_error_is_its_close(error, close, how):
    run = await Run(raising(error, how), exceptions={Mapped: Close(4002, "mapped")}).visit()
    assert run.peer.closed == close
    assert run.outcome == "completed"
    assert run.failures == []


@pytest.mark.parametrize("error", LEFT_ALONE)
async def test_caught_other_error_is_the_frameworks_close(error):
    """Also what Starlette itself knows to close with, unless ``exceptions=`` has it."""
    run = await Run(raising(error), exceptions={Mapped: 4002}).visit()
    assert run.peer.closed == (4500, "of the framework")


async def test_caught_before_accept_is_refused_by_the_policy():
    refusal = TryAgainLater(cause="db", retry_after=2)
    run = await Run(raising(refusal), accept=False).visit()
    assert run.peer.closed == (1013, "try again later; retry_after=2.0; cause=db")
    run = await Run(raising(refusal), accept=False, settings=Settings(reject_with="http")).visit()
    assert run.peer.status == 503


async def test_caught_and_closed_later_is_left_alone():
    run = await Run(raising(CloseWith(4001), "close_later")).visit()
    assert run.peer.closed == (4500, "of the framework")


async def test_caught_by_the_handler_is_its_own_affair():
    """As where an authentication shared with HTTP raises, and the handler closes with the code that its page knows."""

    async def handler(session, receive, send):
        try:
            raise Mapped
        except Mapped:
            await send({"type": "websocket.close", "code": 4401, "reason": "log in"})

    run = await Run(handler, exceptions={Mapped: 4002}).visit()
    assert run.peer.closed == (4401, "log in")


async def test_caught_closed_by_an_error_handler_of_the_application():
    """Whom the framework asks for a close, as Starlette its exception handlers, has chosen one."""

    async def close(send, error):
        await send({"type": "websocket.close", "code": 4401, "reason": "log in"})

    run = await Run(raising(Mapped(), close=close), exceptions={Mapped: 4002}).visit()
    assert run.peer.closed == (4401, "log in")


async def test_caught_handler_that_goes_on_is_left_alone():
    async def handler(session, receive, send):
        try:
            raise TryAgainLater(cause="db")
        except TryAgainLater:
            await send({"type": "websocket.send", "text": "without the database"})
        await send({"type": "websocket.close", "code": 1000, "reason": "done"})

    run = await Run(handler).visit()
    assert run.peer.heard == ["accept", "send", "close"]
    assert run.peer.closed == (1000, "done")


async def test_caught_mapping_that_fails_is_the_frameworks_close():
    def broken(error):
        raise KeyError

    run = await Run(raising(Mapped()), exceptions={Mapped: broken}).visit()
    assert run.peer.closed == (4500, "of the framework")
    assert len(events_of(events.CallbackFailed, run.seen)) == 1


async def test_caught_refusal_of_a_gate_is_counted():
    refusal = TryAgainLater(cause="user")
    refusal.gate = "per_user"
    run = await Run(raising(refusal)).visit()
    [refused] = events_of(events.SessionRefused, run.seen)
    assert (refused.gate, run.peer.closed[0]) == ("per_user", 1013)
