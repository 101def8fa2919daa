"""The applications that live servers serve: each bare, and behind the middleware."""

import asyncio
import json
import logging
import time
from urllib.parse import parse_qsl

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, TryAgainLater
from asgi_closecodes.logs import configure_logging

ROOM = 1_000_000
"""More than anybody asks for: as a limit it is there, and is not felt."""

PLACES = 200
"""Those of a server that is to be overloaded."""

MESSAGES_PER_SECOND = 10
"""The limit of each session where there is one."""

REASON = "try again later; retry_after=2.0; cause=full"


async def echo(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def work(scope, receive, send):
    """Echo, after a look into each message that takes about a tenth of a millisecond."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        for _ in range(20):
            seen = json.loads(json.dumps({"rooms": [*range(20)], "said": message["text"]}))
        await send({"type": "websocket.send", "text": seen["said"]})


async def echo_by_hand(scope, receive, send):
    """Echo, behind the least that can notice how the session ends."""
    last = None

    async def noticing():
        nonlocal last
        last = await receive()
        return last

    await echo(scope, noticing, send)


def counted_by_hand(app):
    """Serve ``app`` behind the least that has the counts of a session's log record.

    It cannot interrupt a handler that waits.
    """

    async def wrapped(scope, receive, send):
        received = sent = 0

        async def receive_and_count():
            nonlocal received
            message = await receive()
            if message["type"] == "websocket.receive":
                received += 1
            return message

        def send_and_count(message):
            nonlocal sent
            if message["type"] == "websocket.send":
                sent += 1
            return send(message)

        await app(scope, receive_and_count, send_and_count)

    return wrapped


async def refuse(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 1013, "reason": REASON})


async def refuse_and_tell(scope, receive, send):
    """As :func:`refuse`, with one line in the log."""
    await refuse(scope, receive, send)
    logging.getLogger("asgi_closecodes.gate").warning("refused a session of %s: full", scope["path"])


def ask_and_refuse(**settings):
    """As :func:`refuse`, where the gates of a guard do not admit the session."""
    guard = Guard(Settings(**settings))

    async def run(scope, receive, send):
        try:
            async with guard.gate.admit(guard.session(scope, receive, send)):
                await echo(scope, receive, send)
        except TryAgainLater:
            await refuse(scope, receive, send)

    return run


async def deny(scope, receive, send):
    await receive()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"retry-after", b"2")]
    await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": REASON.encode()})


async def reject(scope, receive, send):
    """As ASGI has it: uvicorn makes a 403 of it."""
    await receive()
    await send({"type": "websocket.close"})


async def crash(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    find({"room": 1}, "user")


async def crash_caught(scope, receive, send):
    """As people write it by hand: log it, and close with 1011."""
    try:
        await crash(scope, receive, send)
    except Exception:
        logging.getLogger("asgi_closecodes.error").exception("the handler failed")
        await send({"type": "websocket.close", "code": 1011, "reason": "internal error"})


async def crash_silenced(scope, receive, send):
    """The least that can be done: nothing is logged, and the client is told."""
    try:
        await crash(scope, receive, send)
    except Exception:
        await send({"type": "websocket.close", "code": 1011, "reason": "internal error"})


def find(rows, key):
    return _look_up(rows, key)


def _look_up(rows, key):
    return rows[key]


def sockets_only(app):
    """Serve ``app``, and answer the lifespan."""

    async def run(scope, receive, send):
        if scope["type"] == "websocket":
            await app(scope, receive, send)
        elif scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})

    return run


def wrapped(app, *, observers=(), **settings):
    return CloseCodeMiddleware(sockets_only(app), Guard(Settings(**settings), observers=observers))


def _under_memory_pressure():
    """Echo, and let HTTP set the limit to a share of what is in use, leak MiB, and ask for what became of it."""
    import psutil

    from asgi_closecodes.events import SheddingFutile

    futile, leaked, longest = [], [], [0.0]
    guard = Guard(
        Settings(shed_rate=100, max_memory="1TiB"),
        observers=[lambda event: futile.append(event) if isinstance(event, SheddingFutile) else None],
    )

    async def beat():
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            longest[0] = max(longest[0], time.perf_counter() - start - 0.001)

    async def control(scope, receive, send):
        asked = dict(parse_qsl(scope["query_string"].decode()))
        resident = psutil.Process().memory_info().rss
        leaked.append(b"x" * (int(asked.get("leak", 0)) << 20))
        if "share" in asked:
            guard.update(max_memory=int(resident * float(asked["share"])))
            leaked.append(asyncio.create_task(beat()))
        sheds = sum(guard.snapshot()["sheds"].values())
        state = {"resident": resident, "shed": sheds, "futile": len(futile), "longest": longest[0]}
        await _answer(send, {**state, "limit": guard.settings.max_memory})

    return _controlled(control, CloseCodeMiddleware(sockets_only(echo), guard))


def _controlled(control, served):
    async def run(scope, receive, send):
        await (control if scope["type"] == "http" else served)(scope, receive, send)

    return run


async def _answer(send, state):
    body = json.dumps(state).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def flood(scope, receive, send):
    """Send more than sockets hold, to a peer that reads nothing."""
    await receive()
    await send({"type": "websocket.accept"})
    for _ in range(20):
        await send({"type": "websocket.send", "text": "x" * 1_000_000})


def _stalled():
    """Flood, and let HTTP shed all sessions, and ask how many count."""
    guard = Guard(Settings(shed_grace=1))

    async def control(scope, receive, send):
        if scope["query_string"] == b"end":
            for session in [*guard.sessions]:
                session.schedule_close(TryAgainLater(cause="test", retry_after=1.0))
        await _answer(send, {"counted": len(guard.sessions)})

    return _controlled(control, CloseCodeMiddleware(sockets_only(flood), guard))


def _stalled_by_hand():
    """Flood, and let HTTP close all sessions by hand."""
    is_ended, handlers = asyncio.Event(), set()

    async def end_by_hand(scope, receive, send):
        handlers.add(mark := object())
        flooding = asyncio.create_task(flood(scope, receive, send))
        await is_ended.wait()
        flooding.cancel()
        await asyncio.wait([flooding])
        handlers.discard(mark)
        await send({"type": "websocket.close", "code": 1013})

    async def control(scope, receive, send):
        if scope["query_string"] == b"end":
            is_ended.set()
        await _answer(send, {"counted": len(handlers)})

    return _controlled(control, sockets_only(end_by_hand))


def _metrics():
    from prometheus_client import CollectorRegistry

    from asgi_closecodes.telemetry.prometheus import PrometheusObserver

    return [PrometheusObserver(registry=CollectorRegistry())]


bare_echo = sockets_only(echo)
bare_work = sockets_only(work)
bare_crash = sockets_only(crash)
silenced_by_hand = sockets_only(crash_silenced)
refuse_by_hand = sockets_only(refuse)
deny_by_hand = sockets_only(deny)
reject_by_hand = sockets_only(reject)

WRAPPED = {
    "echo_limited": lambda: wrapped(echo, max_sessions=ROOM),
    "echo_by_hand": lambda: sockets_only(echo_by_hand),
    "echo_counted_by_hand": lambda: sockets_only(counted_by_hand(echo)),
    "echo_measured": lambda: wrapped(echo, max_sessions=ROOM, observers=_metrics()),
    "echo_metered": lambda: wrapped(echo, messages_per_second=MESSAGES_PER_SECOND),
    "echo_under_memory_pressure": _under_memory_pressure,
    "closing": lambda: wrapped(echo, max_sessions=0, reject_with="close", max_refusals_per_second=ROOM),
    "refuse_where_full": lambda: sockets_only(ask_and_refuse(max_sessions=0)),
    "denying": lambda: wrapped(echo, max_sessions=0, reject_with="http"),
    "crash_logged": lambda: wrapped(crash, log_burst=None),
    "crash_by_hand": lambda: sockets_only(crash_caught),
    "refuse_told_by_hand": lambda: sockets_only(refuse_and_tell),
    "crash_in_a_storm": lambda: wrapped(crash),
    "crash_silenced_inside": lambda: wrapped(crash_silenced),
    "gated_by_close": lambda: wrapped(work, max_sessions=PLACES, reject_with="close", max_refusals_per_second=ROOM),
    "gated_by_http": lambda: wrapped(work, max_sessions=PLACES, reject_with="http"),
    "stalled": _stalled,
    "stalled_by_hand": _stalled_by_hand,
}
"""Built when a server asks for them: they have a guard, and log JSON."""


def __getattr__(name):
    if name not in WRAPPED:
        raise AttributeError(name)
    configure_logging("json")
    return WRAPPED[name]()
