"""Handlers for each ending, one a name; raw ASGI, for asyncio and trio, with the middleware and without.

Each has a time limit (see ``app``), since some servers never tell of some departures. None of them spins by itself:
what freezes the event loop here is not the handler's own doing.
"""

import asyncio
import json
import random
import sys

import anyio
import anyio.to_thread
from starlette.endpoints import WebSocketEndpoint
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_closecodes import Close, CloseWith, TryAgainLater
from asgi_closecodes.exceptions import SessionEnded

SECRET = "correct-horse-battery"
"""It stands in exceptions' texts and must not reach any client."""

HANDLERS = {}


class Mapped(Exception):
    """Becomes :data:`MAPPING`'s close."""


MAPPING = {Mapped: Close(4002, "mapped")}


def handler(accept=True):
    """Register a handler under its name, which hears the connect, and accepts, before it is called."""

    def register(function):
        async def run(scope, receive, send):
            if (await receive())["type"] != "websocket.connect":
                return
            if accept:
                await send({"type": "websocket.accept"})
            await function(scope, receive, send)

        HANDLERS[function.__name__] = run
        return function

    return register


async def text(send, data):
    await send({"type": "websocket.send", "text": data})


async def close(send, code=1000, reason=""):
    await send({"type": "websocket.close", "code": code, "reason": reason})


async def hear_out(receive):
    while (await receive())["type"] == "websocket.receive":
        pass


def session_of(scope):
    """Return the middleware's session; None without it."""
    return (scope.get("extensions") or {}).get("closecodes")


# Those that behave


@handler()
async def echo(scope, receive, send):
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", **{key: value for key, value in message.items() if key != "type"}})


@handler()
async def close_when_asked(scope, receive, send):
    await receive()
    await close(send, 4000, "as asked")


@handler()
async def finish(scope, receive, send):
    pass


@handler(accept=False)
async def finish_before_accept(scope, receive, send):
    pass


@handler(accept=False)
async def close_before_accept(scope, receive, send):
    await close(send, 4401, "who are you")


@handler(accept=False)
async def deny(scope, receive, send):
    await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b"no"})


@handler(accept=False)
async def deny_half_and_crash(scope, receive, send):
    await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
    raise ValueError(SECRET)


@handler(accept=False)
async def answer_late(scope, receive, send):
    await anyio.sleep(random.uniform(0.2, 2))
    await send({"type": "websocket.accept"})
    await hear_out(receive)


@handler()
async def push(scope, receive, send):
    """Send while the peer may leave, until it is heard that it has."""
    async with anyio.create_task_group() as tasks:

        async def tick():
            while True:
                await text(send, "tick")
                await anyio.sleep(0.01)

        tasks.start_soon(tick)
        await hear_out(receive)
        tasks.cancel_scope.cancel()


@handler()
async def send_only(scope, receive, send):
    while True:
        await text(send, "tick")
        await anyio.sleep(0.05)


@handler()
async def flood(scope, receive, send):
    """Send more than a peer that reads slowly takes."""
    for _ in range(20):
        await text(send, "x" * 500_000)
    await hear_out(receive)


# Those that fail, or close on purpose


@handler(accept=False)
async def crash_before_accept(scope, receive, send):
    raise ValueError(SECRET)


@handler()
async def crash(scope, receive, send):
    raise ValueError(SECRET)


@handler()
async def crash_on_message(scope, receive, send):
    message = await receive()
    if message["type"] == "websocket.receive":
        raise ValueError(SECRET)


@handler()
async def crash_in_a_group(scope, receive, send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(echo, scope, receive, send)
        await anyio.sleep(random.uniform(0, 0.5))
        raise ValueError(SECRET)


@handler()
async def crash_in_cleanup(scope, receive, send):
    try:
        await hear_out(receive)
    finally:
        raise ValueError(SECRET)


@handler()
async def try_again_later(scope, receive, send):
    raise TryAgainLater(cause="database")


@handler(accept=False)
async def try_again_later_before_accept(scope, receive, send):
    raise TryAgainLater(cause="database", retry_after=1.5)


@handler()
async def close_with(scope, receive, send):
    await receive()
    raise CloseWith(4001, "as asked")


@handler(accept=False)
async def close_with_before_accept(scope, receive, send):
    raise CloseWith(4001, "as asked")


@handler()
async def http_exception(scope, receive, send):
    raise HTTPException(random.choice([403, 429, 503]), SECRET)


@handler(accept=False)
async def http_exception_before_accept(scope, receive, send):
    raise HTTPException(403, SECRET)


@handler()
async def mapped(scope, receive, send):
    raise ExceptionGroup("all agree", [Mapped(), Mapped()])


@handler()
async def close_then_crash(scope, receive, send):
    await receive()
    await close(send, 1003, "not JSON")
    raise ValueError(SECRET)


@handler(accept=False)
async def malformed(scope, receive, send):
    """Starlette's endpoint closes with 1003 for what is no JSON, and raises."""

    class Endpoint(WebSocketEndpoint):
        encoding = "json"

    async def connect():
        return {"type": "websocket.connect"}

    inbox = iter([connect])
    await Endpoint(scope, lambda: next(inbox, receive)(), send)


@handler()
async def close_illegally(scope, receive, send):
    await close(send, random.choice([1005, 1006, 1015, 999, 2500, 5000]), random.choice(["x" * 200, "é" * 100, None]))


@handler()
async def close_twice(scope, receive, send):
    await close(send, 4000, "first")
    await close(send, 4001, "second")


@handler(accept=False)
async def send_before_accept(scope, receive, send):
    await text(send, "too early")


@handler()
async def await_a_cancelled_future(scope, receive, send):
    if "asyncio" in sys.modules and _runs_on_asyncio():
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future


def _runs_on_asyncio():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@handler()
async def cancel_itself(scope, receive, send):
    with anyio.CancelScope() as own:
        own.cancel()
        await hear_out(receive)
    raise ValueError(SECRET)


# Those that take an end for something else


@handler()
async def ignore_the_disconnect(scope, receive, send):
    while True:
        await receive()


@handler()
async def ignore_the_disconnect_twice(scope, receive, send):
    async def ignore():
        while True:
            await receive()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ignore)
        tasks.start_soon(ignore)


@handler()
async def swallow(scope, receive, send):
    """Swallow what says that the session was ended; a departure ends it, or the bare server would spin as well."""
    while True:
        try:
            await text(send, "tick")
            await anyio.lowlevel.checkpoint()
        except SessionEnded:
            pass


@handler()
async def poll(scope, receive, send):
    while True:
        with anyio.move_on_after(0.02):
            if (await receive())["type"] == "websocket.disconnect":
                return


@handler()
async def poll_and_ignore(scope, receive, send):
    while True:
        with anyio.move_on_after(0.02):
            await receive()


async def receive_in_tasks(receive):
    """Yield messages, each received in a task of its own, as Channels does."""
    message = None

    async def once():
        nonlocal message
        message = await receive()

    while True:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(once)
        yield message


@handler()
async def task_per_receive(scope, receive, send):
    async for message in receive_in_tasks(receive):
        if message["type"] == "websocket.disconnect":
            return


@handler()
async def task_per_receive_and_ignore(scope, receive, send):
    async for _ in receive_in_tasks(receive):
        pass


@handler()
async def two_readers(scope, receive, send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(echo, scope, receive, send)
        tasks.start_soon(hear_out, receive)


@handler()
async def cleanup_sleeps(scope, receive, send):
    try:
        await hear_out(receive)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(random.uniform(0, 1))


@handler(accept=False)
async def cleanup_closes(scope, receive, send):
    """Close once more after the client has left, as ``finally: await websocket.close()`` does."""
    websocket = await accepted(scope, receive, send)
    try:
        await websocket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        await websocket.close()


@handler(accept=False)
async def receive_once_more(scope, receive, send):
    """Receive after the disconnect, which Starlette answers with a RuntimeError."""
    websocket = await accepted(scope, receive, send)
    while True:
        await websocket.receive()


@handler(accept=False)
async def let_the_disconnect_escape(scope, receive, send):
    websocket = await accepted(scope, receive, send)
    while True:
        await websocket.send_json(await websocket.receive_text())


@handler(accept=False)
async def tell_of_the_error(scope, receive, send):
    websocket = await accepted(scope, receive, send)
    try:
        json.loads(await websocket.receive_text())
    except Exception as error:
        await websocket.send_text(type(error).__name__)


async def accepted(scope, receive, send):
    """Return Starlette's view of a connection whose connect has been heard."""

    async def connect():
        return {"type": "websocket.connect"}

    inbox = iter([connect])
    websocket = WebSocket(scope, lambda: next(inbox, receive)(), send)
    await websocket.accept()
    return websocket


# Those with neighbours, keys and threads

_room = {}


@handler()
async def room(scope, receive, send):
    """Say everything to everybody, and fail with the first member that has left."""
    _room[send] = None
    try:
        while (message := await receive())["type"] == "websocket.receive":
            for member in [*_room]:
                await text(member, str(message.get("text"))[:100])
    finally:
        del _room[send]


@handler()
async def kind_room(scope, receive, send):
    """Say everything to everybody who is there."""
    _room[send] = None
    try:
        while (message := await receive())["type"] == "websocket.receive":
            for member in [*_room]:
                try:
                    await text(member, str(message.get("text"))[:100])
                except (OSError, RuntimeError):
                    _room.pop(member, None)
    finally:
        _room.pop(send, None)


@handler(accept=False)
async def key(scope, receive, send):
    """Become one of few users, of whom each may have few sessions."""
    if (session := session_of(scope)) is not None:
        session.key = random.randrange(4)
    await send({"type": "websocket.accept"})
    await hear_out(receive)


@handler()
async def key_from_a_thread(scope, receive, send):
    if (session := session_of(scope)) is not None:
        await anyio.to_thread.run_sync(setattr, session, "key", random.randrange(4))
    await hear_out(receive)


@handler()
async def key_from_a_foreign_thread(scope, receive, send):
    if (session := session_of(scope)) is not None and _runs_on_asyncio():
        await asyncio.to_thread(setattr, session, "key", random.randrange(4))
    await hear_out(receive)


@handler()
async def shed_itself(scope, receive, send):
    if (session := session_of(scope)) is not None:
        await session.shed("own")
    await hear_out(receive)


@handler()
async def shed_itself_in_a_child(scope, receive, send):
    async with anyio.create_task_group() as tasks:
        if (session := session_of(scope)) is not None:
            tasks.start_soon(session.shed, "own")
        await hear_out(receive)


@handler()
async def important(scope, receive, send):
    if (session := session_of(scope)) is not None:
        session.priority, session.shed_exempt = random.randrange(3), random.random() < 0.5
    await hear_out(receive)
