"""Handlers that end in every way a handler can, one a path; raw ASGI, for asyncio and trio."""

import contextlib
import json
import math

import anyio
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

SECRET = "correct-horse-battery"
"""It stands in exceptions' texts and must not reach any client."""

ENDINGS = {}


def ending(accept=True):
    """Register a handler under the path that its name says."""

    def register(handler):
        async def run(scope, receive, send):
            assert (await receive())["type"] == "websocket.connect"
            if accept:
                await send({"type": "websocket.accept"})
            await handler(scope, receive, send)

        ENDINGS["/" + handler.__name__.replace("_", "-")] = run
        return handler

    return register


async def close(send, code=1000, reason=""):
    await send({"type": "websocket.close", "code": code, "reason": reason})


async def text(send, data):
    await send({"type": "websocket.send", "text": data})


@ending()
async def echo(scope, receive, send):
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", **{k: v for k, v in message.items() if k != "type"}})


@ending(accept=False)
async def raise_before_accept(scope, receive, send):
    raise ValueError(SECRET)


@ending()
async def raise_after_accept(scope, receive, send):
    raise ValueError(SECRET)


@ending()
async def raise_a_group(scope, receive, send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(raise_after_accept, scope, receive, send)


@ending()
async def raise_on_message(scope, receive, send):
    await receive()
    raise ValueError(SECRET)


@ending()
async def be_cancelled(scope, receive, send):
    """Whoever runs the application cancels it, see ``impatient``."""
    await anyio.sleep_forever()


@ending()
async def return_after_accept(scope, receive, send):
    pass


@ending(accept=False)
async def return_before_accept(scope, receive, send):
    pass


@ending(accept=False)
async def close_before_accept(scope, receive, send):
    await close(send, 1013, "full")


@ending(accept=False)
async def close_4401_before_accept(scope, receive, send):
    await close(send, 4401, "sign in")


@ending(accept=False)
async def deny(scope, receive, send):
    headers = [(b"retry-after", b"7")]
    await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"full"})


@ending(accept=False)
async def deny_half_and_raise(scope, receive, send):
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "websocket.http.response.start", "status": 403, "headers": headers})
    raise ValueError(SECRET)


@ending()
async def deny_after_accept(scope, receive, send):
    await PlainTextResponse("gone", status_code=410)({**scope, "method": "GET"}, receive, send)


@ending()
async def close_1013(scope, receive, send):
    await close(send, 1013, "full")


@ending()
async def close_1011(scope, receive, send):
    await close(send, 1011, "broken")


@ending()
async def close_4013(scope, receive, send):
    await close(send, 4013, "full")


@ending()
async def close_with_a_long_reason(scope, receive, send):
    await close(send, 4000, "x" * 200)


@ending()
async def close_with_a_long_reason_in_utf8(scope, receive, send):
    await close(send, 4000, "é" * 100)


@ending()
async def close_with_a_list(scope, receive, send):
    await close(send, 4000, [{"loc": "query"}])


@ending()
async def close_1006(scope, receive, send):
    await close(send, 1006, "")


@ending()
async def close_twice(scope, receive, send):
    await close(send, 4000, "first")
    await close(send, 4001, "second")


@ending()
async def send_after_the_peer_left(scope, receive, send):
    """A handler that only sends: it learns of the departure by an OSError, or not at all."""
    with anyio.move_on_after(1):
        while True:
            await text(send, "x" * 1000)
            await anyio.sleep(0.01)


@ending()
async def flood_and_raise(scope, receive, send):
    """Send more than sockets hold to a peer that may not read, for a while, and fail."""
    with anyio.move_on_after(1):
        for _ in range(200):
            await text(send, "x" * 1_000_000)
    raise ValueError(SECRET)


@ending()
async def flood(scope, receive, send):
    """Send ordinary messages as fast as the peer takes them."""
    while True:
        await text(send, "x" * 8192)
        await anyio.sleep(0)


@ending()
async def flood_without_a_pause(scope, receive, send):
    """Send small messages, and wait for nothing else."""
    while True:
        await text(send, "x" * 100)


@ending()
async def flood_in_new_tasks(scope, receive, send):
    """Begin to send every 50 ms, whether what was sent before has been taken or not."""
    async with anyio.create_task_group() as tasks:
        while True:
            tasks.start_soon(text, send, "x" * 500_000)
            await anyio.sleep(0.05)


@ending()
async def go_on_after_the_disconnect(scope, receive, send):
    while (await receive())["type"] != "websocket.disconnect":
        pass
    await anyio.sleep_forever()


@ending()
async def send_only(scope, receive, send):
    while True:
        await text(send, "tick")
        await anyio.sleep(0.01)


@ending()
async def sleep(scope, receive, send):
    await anyio.sleep_forever()


@ending(accept=False)
async def answer_late(scope, receive, send):
    await anyio.sleep(30)
    await send({"type": "websocket.accept"})


@ending()
async def ignore_the_disconnect(scope, receive, send):
    while True:
        await receive()
        await anyio.sleep(0.01)


@ending()
async def receive_for_ever(scope, receive, send):
    while True:
        await receive()


@ending()
async def receive_in_new_tasks(scope, receive, send):
    """As Channels does."""
    while True:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)


@ending()
async def send_and_swallow(scope, receive, send):
    while True:
        try:
            await text(send, "tick")
            await anyio.sleep(0.01)
        except OSError:
            pass


MEMBERS = []


@ending()
async def join(scope, receive, send):
    """Be a member of a room, until the peer leaves or the session is ended."""
    websocket = WebSocket(scope, receive, send)
    websocket.client_state = websocket.application_state = WebSocketState.CONNECTED
    MEMBERS.append(websocket)
    try:
        await anyio.sleep_forever()
    finally:
        MEMBERS.remove(websocket)


@ending()
async def speak(scope, receive, send):
    """Tell every member what the peer says."""
    while (message := await receive())["type"] == "websocket.receive":
        for member in MEMBERS:
            await member.send_text(message["text"])


@ending()
async def converse(scope, receive, send):
    """Tell itself what the peer says, as a room does, while the peer leaves."""
    websocket = WebSocket(scope, receive, send)
    websocket.client_state = websocket.application_state = WebSocketState.CONNECTED
    async for said in websocket.iter_text():
        await anyio.sleep(0.05)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await websocket.send_text(said)


@ending()
async def close_in_finally(scope, receive, send):
    websocket = WebSocket(scope, receive, send)
    websocket.client_state = websocket.application_state = WebSocketState.CONNECTED
    try:
        await websocket.receive_text()
    finally:
        await websocket.close()


@ending()
async def answer_once(scope, receive, send):
    await receive()
    await anyio.sleep(0.05)
    for _ in range(5):
        await text(send, "answer")


@ending()
async def close_and_raise(scope, receive, send):
    await close(send, 1003)
    raise ValueError(SECRET)


@ending()
async def receive_in_a_child_task(scope, receive, send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(echo, scope, receive, send)


@ending()
async def receive_in_two_tasks(scope, receive, send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(echo, scope, receive, send)
        tasks.start_soon(echo, scope, receive, send)


@ending()
async def receive_with_a_time_limit(scope, receive, send):
    while True:
        with anyio.move_on_after(0.05):
            if (await receive())["type"] == "websocket.disconnect":
                return


@ending()
async def receive_in_a_generator(scope, receive, send):
    async def messages():
        while (message := await receive())["type"] == "websocket.receive":
            yield message

    async for message in messages():
        await text(send, message["text"])


@ending()
async def clean_up_after_the_disconnect(scope, receive, send):
    websocket = WebSocket(scope, receive, send)
    websocket.client_state = websocket.application_state = WebSocketState.CONNECTED
    try:
        await websocket.receive_text()
    except WebSocketDisconnect as left:
        try:
            await send({"type": "websocket.send", "text": "too late"})
        except OSError as error:
            print(json.dumps({"saw": left.code, "why": left.reason, "sending": type(error).__name__}), flush=True)
        raise


@ending()
async def let_the_disconnect_escape(scope, receive, send):
    while (message := await receive())["type"] == "websocket.receive":
        pass
    raise WebSocketDisconnect(message["code"])


@ending()
async def send_until_the_disconnect(scope, receive, send):
    """What a handler sends while its peer leaves must not end in an error."""
    async with anyio.create_task_group() as tasks:

        async def push():
            while True:
                await text(send, "tick")
                await anyio.sleep(0.001)

        tasks.start_soon(push)
        while (await receive())["type"] == "websocket.receive":
            pass
        await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()


@ending()
async def raise_http_exception(scope, receive, send):
    raise HTTPException(403, SECRET)


@ending()
async def tell_the_client(scope, receive, send):
    await text(send, json.dumps(scope.get("client")))


def impatient(app):
    """Give ``app`` little time for this one path, as an outer middleware with a time limit does."""

    async def run(scope, receive, send):
        with anyio.move_on_after(0.1 if scope.get("path") == "/be-cancelled" else math.inf):
            await app(scope, receive, send)

    return run


@impatient
async def bare(scope, receive, send):
    if scope["type"] == "websocket":
        await ENDINGS[scope["path"]](scope, receive, send)
    elif scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await PlainTextResponse("up")(scope, receive, send)
