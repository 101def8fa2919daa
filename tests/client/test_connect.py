"""The client against live servers."""

import asyncio
import contextlib
import itertools
import logging
import socket
import ssl
import struct
import threading
import time
from contextlib import ExitStack, aclosing

import anyio
import anyio.to_thread
import httpx
import httpx_ws
import pytest
import wsproto.events
from wsproto.connection import ConnectionState

from asgi_closecodes import Close
from asgi_closecodes.client import Backoff, Connecting, Ended, GaveUp, Opened, connect, session
from tests.support.asgi import events_of
from tests.support.client_rule import ATTEMPTS_IN_TEN_SECONDS, seen
from tests.support.fakes import wait_until
from tests.support.servers import serve

from .following import eager, follow, living, no_task_left, peer

pytestmark = pytest.mark.anyio


# What it comes back after


@pytest.mark.parametrize("code", [1008, 1003, 3000, 3003, 4003])
async def test_connect_gives_up_after_a_code_that_says_so(server, key, code):
    events, _ = await follow(f"{server.url}/close/{key}/{code}?reason=no")
    assert [type(event) for event in events] == [Connecting, Opened, Ended, GaveUp]
    assert (events[-1].close.code, events[-1].close.reason, events[-1].status) == (code, "no", None)
    assert str(events[-1]) == f"attempt 1 was the last: the session ended with {code}"


@pytest.mark.parametrize("status", [401, 403, 404, 429])
async def test_connect_gives_up_after_such_a_status(server, key, status):
    events, _ = await follow(f"{server.url}/refuse/{key}/{status}?retry-after=1")
    assert [type(event) for event in events] == [Connecting, Ended, GaveUp]
    assert (events[-1].close.code, events[-1].status) == (1006, status)
    assert str(events[-1]) == f"attempt 1 was the last: the handshake was refused with HTTP {status}"
    assert isinstance(events[-1].__cause__, httpx_ws.WebSocketUpgradeError)


async def test_loop_ends_after_1000(server, key):
    events, messages = await follow(f"{server.url}/close/{key}/1000?messages=3")
    assert [type(event) for event in events] == [Connecting, Opened, Ended]
    assert messages == ["hello"] * 3


async def test_connect_comes_back_until_then(server, key):
    events, messages = await follow(
        f"{server.url}/close/{key}/1012,3008,1001,1011,4011,1000?messages=1", backoff=eager()
    )
    # A message is a proof for all of them but the crashes.
    assert [(event.close.code, event.retry_in) for event in events if isinstance(event, Ended)] == [
        (1012, 0.01),
        (3008, 0.01),
        (1001, 0.01),
        (1011, 0.02),
        (4011, 0.04),
        (1000, None),
    ]
    assert messages == ["hello"] * 6


async def test_five_seconds_of_being_open_are_a_proof(server, key):
    in_a_hurry = eager(clock=lambda: 1000 * time.monotonic())
    events, _ = await follow(f"{server.url}/close/{key}/1012,1012,1012,1000?seconds=0.2", backoff=in_a_hurry)
    waits = [event.retry_in for event in events if isinstance(event, Ended)]
    assert waits == [0.01, 0.01, 0.01, None]


async def test_crashes_in_a_row_are_bounded(server, key):
    events, messages = await follow(f"{server.url}/close/{key}/1011?messages=1", backoff=eager(max_crashes=3))
    assert [type(event) for event in events] == [Connecting, Opened, Ended] * 3 + [GaveUp]
    assert events[-1].close.code == 1011
    assert messages == ["hello"] * 3


async def test_hint_is_honoured_within_a_tenth(server, key):
    paths = {
        f"/close/{key}/1013": "?reason=try again later; retry_after=1.0; cause=full",
        f"/refuse/{key}/503": "?retry-after=1",
    }

    def waits(path):
        times = seen(server)["attempts"].get(path, ())  # by the server's clock
        return [after - before for before, after in itertools.pairwise(times)]

    async with anyio.create_task_group() as tasks:
        for path, query in paths.items():
            tasks.start_soon(lambda url: follow(url, backoff=eager()), server.url + path + query)
        with anyio.move_on_after(30):  # a busy machine may make some of them late
            while not all(len(waits(path)) >= 2 and min(waits(path)) < 1.1 for path in paths):
                await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()
    for path in paths:
        assert 1.0 <= min(waits(path)) < 1.1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_connect_to_a_server_that_accepts_to_close_backs_off(tmp_path):
    """A server that accepts in order to close gets few attempts."""
    paths = {"/close/key/1013": ATTEMPTS_IN_TEN_SECONDS, "/full": 6}  # the queue's first hint is 1.8 s at least
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serve(setup, "tests.client.app:app", tmp_path, forked=True))
            for setup in ("uvicorn-sansio", "hypercorn-asyncio", "granian")
        ]
        with anyio.move_on_after(10):
            async with anyio.create_task_group() as tasks:
                for server, path in itertools.product(servers, paths):
                    tasks.start_soon(follow, server.url + path)
        for server, path in itertools.product(servers, paths):
            assert 2 <= len(seen(server)["attempts"][path]) <= paths[path]


async def test_connect_survives_a_restart_of_the_server(tmp_path):
    def start():  # on a unix socket, since somebody may take a port in between
        return serve("uvicorn-sansio", "tests.client.app:app", tmp_path, forked=True, unix=True)

    ends = []
    nobody_there = anyio.Event()

    def note(event):
        if isinstance(event, Ended):
            ends.append(event)
            if event.error is not None:
                nobody_there.set()

    async def start_again():
        await nobody_there.wait()
        await anyio.to_thread.run_sync(second_life.enter_context, start())

    with ExitStack() as first_life, ExitStack() as second_life, anyio.fail_after(60):
        address = first_life.enter_context(start()).address
        client = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=address))
        async with client, anyio.create_task_group() as tasks:
            tasks.start_soon(start_again)
            sessions = connect("ws://localhost/echo/key", client, backoff=Backoff(random=lambda: 0.2), on_event=note)
            async with aclosing(sessions):
                async for websocket in sessions:
                    await websocket.send_text("hello")
                    assert await websocket.receive_text() == "hello"
                    if nobody_there.is_set():
                        break
                    await anyio.to_thread.run_sync(first_life.close)
    assert len(ends) >= 2
    assert ends[0].close.code == 1012  # uvicorn's
    assert {(end.close.code, end.status) for end in ends[1:]} == {(1006, None)}


async def test_connect_to_nobody_is_as_a_lost_connection(closed_port):
    ends = []
    with anyio.fail_after(10):
        sessions = connect(f"ws://127.0.0.1:{closed_port}", backoff=eager(), on_event=ends.append)
        async with aclosing(sessions), anyio.create_task_group() as tasks:
            tasks.start_soon(anext, sessions)
            await wait_until(lambda: len(events_of(Ended, ends)) > 1)
            tasks.cancel_scope.cancel()
    ends = events_of(Ended, ends)
    assert ends[0].close.code == 1006
    assert isinstance(ends[0].error, httpx.ConnectError)
    assert str(ends[0]) == "there was no connection (ConnectionRefusedError)"
    assert ends[0].retry_in == 0.01
    assert ends[1].retry_in == 0.02


@pytest.mark.parametrize(
    "answer",
    [
        b"",  # it hangs up
        b"\x88\x00",  # a close without a code
        b"\x88\x02\x03\xf0",  # 1008
        b"\xff\xff\xff\xff",  # no frame at all
        b"\x81\x05hel",  # half a message
    ],
)
async def test_peer_may_do_as_it_likes(answer):
    with peer(lambda plain: plain.sendall(answer)) as url:
        ends = []
        with anyio.fail_after(20):
            try:
                async for websocket in connect(url, backoff=eager(), on_event=ends.append):
                    async for _ in websocket:
                        pass
                    if len(ends) > 6:
                        break
            except GaveUp:
                pass
    codes = [event.close.code for event in ends if isinstance(event, Ended)]
    match answer[:2]:
        case b"\x88\x00":
            assert codes == [1005]  # and that is the end, as 1000 is
        case b"\x88\x02":
            assert codes == [1008]
        case b"\xff\xff":
            assert codes == [1002]  # httpx-ws says so itself
        case _:
            assert set(codes) == {1006}


async def two_attempts(url, *arguments, **options):
    """Return the ends of the first two attempts, which fail."""
    events = []
    sessions = connect(url, *arguments, backoff=eager(), on_event=events.append, **options)
    with anyio.fail_after(20):
        async with aclosing(sessions), anyio.create_task_group() as tasks:
            tasks.start_soon(anext, sessions)
            while len(events) < 4:
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert [type(event) for event in events[:4]] == [Connecting, Ended] * 2
    return events[1], events[3]


async def test_timeout_is_called_a_timeout(silent_port):
    async with httpx.AsyncClient(timeout=0.1) as client:
        for end in await two_attempts(f"ws://127.0.0.1:{silent_port}", client):
            assert str(end) == "there was no connection (ReadTimeout)"
            assert end.close.code == 1006


@pytest.mark.parametrize("after", [b"", b"HTTP/1.1 101 Switching Protocols\r\nX: "])
async def test_handshake_that_drips_is_given_up(after):
    """httpx bounds each read, not all of them."""
    listening = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(after)
                    while not over.wait(0.02):
                        connection.sendall(b"H")

    threading.Thread(target=drip, daemon=True).start()
    try:
        for end in await two_attempts(f"ws://127.0.0.1:{listening.getsockname()[1]}", open_timeout=0.3):
            assert str(end) == "there was no connection (ConnectTimeout)"
            assert str(end.error) == "the handshake took more than 0.3 s"
    finally:
        over.set()
        listening.close()


async def test_open_session_outlives_the_open_timeout(server, key):
    async with aclosing(connect(f"{server.url}/echo/{key}", open_timeout=0.5)) as sessions:
        websocket = await anext(sessions)
        await anyio.sleep(0.6)
        await websocket.send_text("hello")
        assert await anext(websocket) == "hello"


def frame(opcode, payload, *, final=False):
    length = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + struct.pack("!H", len(payload))
    return bytes([0x80 * final | opcode]) + length + payload


@pytest.mark.parametrize(
    ("piece", "max_size"), [(b"x", 1000), (b"x" * 60_000, 100_000), ("é".encode() * 20_000, 100_000)]
)
@pytest.mark.parametrize("opcode", [1, 2])
async def test_fragments_without_end_are_closed_with_1009(opcode, piece, max_size):
    """A message is bounded, not only each of its frames."""
    seen = b""

    def behaviour(plain):
        nonlocal seen
        plain.settimeout(10)
        with contextlib.suppress(OSError):
            plain.sendall(frame(opcode, piece))
            while True:
                plain.sendall(frame(0, piece) * 100)
        with contextlib.suppress(OSError):
            while received := plain.recv(65536):
                seen += received

    with peer(behaviour) as url, anyio.fail_after(20):
        events, messages = await follow(url, max_size=max_size)
    assert messages == []
    assert [type(event) for event in events] == [Connecting, Opened, Ended, GaveUp]
    assert events[-1].close == Close(1009, f"a message of more than {max_size} bytes")
    mask, payload = seen[2:6], seen[6:]
    assert seen[0] == 0x88
    assert bytes(a ^ b for a, b in zip(payload[:2], mask, strict=False)) == struct.pack("!H", 1009)


@pytest.mark.parametrize("whole", [True, False])
async def test_message_up_to_the_limit_is_received(whole):
    def behaviour(plain):
        for message in ("é" * 500, "x" * 1000, "x" * 501 + "é" * 250):
            data = message.encode()
            pieces = [data] if whole else [data[:333], data[333:666], data[666:], b""]
            for number, piece in enumerate(pieces):
                plain.sendall(frame(1 if number == 0 else 0, piece, final=number == len(pieces) - 1))
        plain.recv(65536)

    with peer(behaviour) as url, anyio.fail_after(20):
        events, messages = await follow(url, max_size=1000)
    assert messages == ["é" * 500, "x" * 1000]
    assert events[-1].close.code == 1009


@pytest.mark.parametrize(("url", "times"), [("ws://127.0.0.1", 0), ("WS://[::1]", 0), ("wss://127.0.0.1", 1)])
async def test_certificates_are_read_for_tls_only(url, times, monkeypatch):
    """Meanwhile the event loop stands still."""
    read = []
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: read.append(url))
    connect(url)
    assert len(read) == times


async def test_no_certificate_is_trusted_without_tls():
    tls = connect("ws://127.0.0.1")._open.keywords["tls"]
    assert (tls.verify_mode, tls.check_hostname, tls.get_ca_certs()) == (ssl.CERT_REQUIRED, True, [])


@pytest.mark.parametrize("bad", [{"open_timeout": 0}, {"open_timeout": float("nan")}, {"max_size": -1}])
async def test_limit_that_is_none_is_named(bad):
    (name, value) = *bad, *bad.values()
    with pytest.raises(ValueError, match=rf"{name}={value!r}: use a number above 0, or None"):
        connect("ws://127.0.0.1", **bad)


# What it gives to the loop


async def test_messages_come_as_they_are(server, key):
    async with aclosing(connect(f"{server.url}/echo/{key}", subprotocols=["a", "b"])) as sessions:
        async for websocket in sessions:
            assert websocket.subprotocol == "b"
            await websocket.send_text("text")
            await websocket.send_bytes(b"bytes")
            assert [await anext(websocket), await anext(websocket)] == ["text", b"bytes"]
            break


async def test_headers_are_sent_and_left_alone(server, key):
    headers = {"authorization": "Bearer x"}
    events, _ = await follow(f"{server.url}/close/{key}/1012,1000", headers=headers, backoff=eager())
    assert events[-1].close.code == 1000
    assert headers == {"authorization": "Bearer x"}


async def test_end_stays_the_end(server, key):
    async for websocket in connect(f"{server.url}/close/{key}/1000?reason=bye"):
        for _ in range(2):
            with pytest.raises(httpx_ws.WebSocketDisconnect) as end:
                await websocket.receive_text()
            assert (end.value.code, end.value.reason) == (1000, "bye")
            with pytest.raises(httpx_ws.WebSocketNetworkError):
                await websocket.send_text("too late")
        assert [message async for message in websocket] == []


async def test_turn_that_only_sends_is_told_of_the_end(server, key, monkeypatch):
    monkeypatch.setattr(session, "SEND_GRACE_S", 0.1)
    with anyio.fail_after(10), pytest.raises(GaveUp, match="1008"):
        async for websocket in connect(f"{server.url}/close/{key}/1008"):
            with pytest.raises(httpx_ws.WebSocketNetworkError) as end:
                while True:
                    await websocket.send_text("hello?")
                    await anyio.sleep(0.01)
            assert "async with session" in end.value.__notes__[0]


async def until_closed(websocket):
    """Wait until a close frame was read, which nobody has received."""
    while websocket.connection.state is ConnectionState.OPEN:
        await anyio.sleep(0.01)


@pytest.mark.parametrize("sends", [1, 3])
async def test_greeting_server_that_closed_ends_the_turn(server, key, sends):
    """A new user's first line does not crash the program where the server is full."""
    ends = []
    codes = "1013,1011,4001?reason=full; retry_after=0.0"
    with anyio.fail_after(10), pytest.raises(GaveUp, match="4001"):
        async for websocket in connect(f"{server.url}/close/{key}/{codes}", backoff=eager(), on_event=ends.append):
            await until_closed(websocket)
            for _ in range(sends):
                await websocket.send_text("hi")
                await websocket.send_json({})
            async for _ in websocket:
                pass
    assert [event.close.code for event in ends if isinstance(event, Ended)] == [1013, 1011, 4001]


async def again(websocket, call):
    while True:
        await call(websocket)
        await anyio.sleep(0.01)


async def iterate(websocket):
    async for _ in websocket:
        pass
    await websocket.receive()


async def in_a_child(websocket, call):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(again, websocket, call)
        await anyio.sleep_forever()


async def in_children_of_children(websocket, call):
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(in_a_child, websocket, call)
        await again(websocket, call)


CALLS = {
    "send_text": lambda websocket: websocket.send_text("hi"),
    "send_bytes": lambda websocket: websocket.send_bytes(b"hi"),
    "send_json": lambda websocket: websocket.send_json({}, mode="binary"),
    "send": lambda websocket: websocket.send(wsproto.events.TextMessage("hi")),
    "ping": lambda websocket: websocket.ping(),
    "receive": lambda websocket: websocket.receive(),
    "receive_text": lambda websocket: websocket.receive_text(timeout=5),
    "receive_bytes": lambda websocket: websocket.receive_bytes(),
    "receive_json": lambda websocket: websocket.receive_json(),
    "iterate": iterate,
}


@pytest.mark.parametrize("where", [again, in_a_child, in_children_of_children])
@pytest.mark.parametrize("call", CALLS)
async def test_block_ends_whatever_found_the_end(server, key, call, where):
    ends = []
    codes = "1013,1011,1012,4001?reason=full; retry_after=0.0"
    with anyio.fail_after(20), pytest.raises(GaveUp, match="4001"):
        async for websocket in connect(f"{server.url}/close/{key}/{codes}", backoff=eager(), on_event=ends.append):
            async with websocket:
                await where(websocket, CALLS[call])
    assert [event.close.code for event in ends if isinstance(event, Ended)] == [1013, 1011, 1012, 4001]


def reset(plain):
    """Leave as a host does that has crashed and come back."""
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plain.close()


@pytest.mark.parametrize("where", [again, in_children_of_children])
@pytest.mark.parametrize("call", CALLS)
async def test_block_ends_with_a_lost_connection(call, where):
    ends = []
    with anyio.fail_after(20), peer(reset) as url:
        async with aclosing(connect(url, backoff=eager(), on_event=ends.append)) as sessions:
            async for websocket in sessions:
                async with websocket:
                    await where(websocket, CALLS[call])
                if len(ends) > 8:
                    break
    ends = [event for event in ends if isinstance(event, Ended)]
    assert {(event.close.code, event.error) for event in ends} == {(1006, None)}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_all_tasks_that_receive_are_told_of_the_end(server, key):
    async for websocket in connect(f"{server.url}/close/{key}/1000?seconds=0.1"):
        with anyio.fail_after(10):
            calls = [websocket.receive(), websocket.receive_text(), websocket.receive()]
            ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [end.code for end in ends] == [1000] * 3


class Unhashable(Exception):
    __hash__ = None  # as that of a dataclass


def failing(websocket, other):
    return {
        "a bug": LookupError("a bug"),
        "another session's end": other,
        "one that was made": httpx_ws.WebSocketNetworkError(),
        "a disconnect": httpx_ws.WebSocketDisconnect(1013),
        "an error without a hash": Unhashable(),
        "no text": httpx_ws.WebSocketInvalidTypeReceived(wsproto.events.Ping()),
    }


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("what", failing(None, None))
async def test_block_swallows_only_its_own_end(server, key, what, grouped):
    """A failure of another connection is the program's to handle, though its class is the same."""
    async for other in connect(f"{server.url}/close/{key}other/1000"):
        with pytest.raises(httpx_ws.WebSocketDisconnect) as other_end:
            await other.receive()
    async for websocket in connect(f"{server.url}/close/{key}/1000"):
        error = failing(websocket, other_end.value)[what]
        with pytest.raises(ExceptionGroup if grouped else type(error)) as left:
            async with websocket as same:
                assert same is websocket
                with pytest.raises(httpx_ws.WebSocketDisconnect) as own:
                    await websocket.receive()
                raise ExceptionGroup("tasks", [own.value, ExceptionGroup("more", [error])]) if grouped else error
        if grouped:
            [[left]] = [group.exceptions for group in left.value.exceptions]
            assert left is error
        else:
            assert left.value is error


async def test_block_lets_a_cancellation_pass(server, key):
    async with aclosing(connect(f"{server.url}/echo/{key}")) as sessions:
        websocket = await anext(sessions)
        with anyio.move_on_after(0.1) as scope:
            async with websocket:
                await websocket.receive()
        assert scope.cancelled_caught


@pytest.mark.parametrize("messages", [0, 3])
async def test_turn_in_a_hurry_does_not_miss_the_close(messages):
    def behaviour(plain):
        plain.sendall(b"\x81\x05hello" * messages + b"\x88\x02\x03\xf0")
        while plain.recv(65536):
            pass

    with peer(behaviour) as url, pytest.raises(GaveUp, match="1008"):
        async for _ in connect(url):
            pass


async def test_connect_after_leaving_an_open_session_waits_its_delay(server, key):
    """A turn that leaves an open session comes back as after any close."""
    ends = []
    with anyio.fail_after(10):
        sessions = connect(f"{server.url}/echo/{key}", backoff=eager(), on_event=ends.append)
        async with aclosing(sessions):
            async for _websocket in sessions:
                if len(ends) > 6:
                    break
                continue
        ends = [event for event in ends if isinstance(event, Ended)]
        assert [(event.close.code, event.retry_in) for event in ends] == [(1001, 0.01), (1001, 0.02)]
        path = f"/echo/{key}"
        while len(codes := seen(server)["left"].get(path, [])) < 3:
            await anyio.sleep(0.01)
    assert codes == [1001, 1001, 1000]


# How it is left


@pytest.mark.parametrize("how", ["break", "exception", "cancelled", "finished", "gave up"])
async def test_no_task_is_left(server, key, how):
    async def leave():
        path = {"finished": "close/{key}/1000", "gave up": "close/{key}/1008"}.get(how, "echo/{key}")
        async with aclosing(connect(f"{server.url}/{path.format(key=key)}")) as sessions:
            async for websocket in sessions:
                match how:
                    case "break":
                        break
                    case "exception":
                        raise LookupError
                    case "cancelled":
                        with anyio.move_on_after(0.1):
                            await websocket.receive()
                        break
                    case _:
                        await websocket.receive()

    async with no_task_left():
        with contextlib.suppress(LookupError, GaveUp, httpx_ws.WebSocketDisconnect):
            await leave()


async def test_break_alone_closes_the_session(server, key):
    async with no_task_left():
        async for websocket in connect(f"{server.url}/echo/{key}"):
            await websocket.send_text("hello")
            break
        del websocket
    assert seen(server)["left"][f"/echo/{key}"] == [1000]


async def test_when_it_is_closed_nothing_is_left_to_do(server, key):
    before = living()
    async with aclosing(connect(f"{server.url}/echo/{key}")) as sessions:
        await anext(sessions)
    assert living() == before
    assert [session async for session in sessions] == []


async def test_cancellation_passes_through_at_every_point(server, key, closed_port, silent_port):
    ports = {"while it connects": silent_port, "while it waits": closed_port}
    urls = [f"ws://127.0.0.1:{port}" for port in ports.values()] + [f"{server.url}/echo/{key}"]
    before = living()
    async with httpx.AsyncClient(timeout=None) as client:
        for url in urls:
            with anyio.fail_after(10), anyio.move_on_after(0.3) as scope:
                async with aclosing(connect(url, client, backoff=Backoff(random=lambda: 1.0))) as sessions:
                    async for websocket in sessions:
                        await websocket.receive()
            assert scope.cancelled_caught
            await sessions.aclose()
            assert living() == before


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_task_is_cancelled(server, key):
    async def run():
        async for websocket in connect(f"{server.url}/echo/{key}"):
            opened.set()
            await websocket.receive()

    opened = asyncio.Event()
    async with no_task_left():
        task = asyncio.create_task(run())
        await opened.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_peer_that_reads_nothing_holds_nobody(monkeypatch):
    async def flood(websocket):
        with anyio.move_on_after(0.5) as scope:
            while True:
                await websocket.send_bytes(bytes(1 << 20))
        assert scope.cancelled_caught

    monkeypatch.setattr(session, "CLOSE_TIMEOUT_S", 0.2)
    done = threading.Event()
    try:
        with peer(lambda plain: done.wait()) as url, anyio.fail_after(20):
            async with no_task_left(), aclosing(connect(url, backoff=eager())) as sessions:
                await flood(await anext(sessions))
                await flood(await anext(sessions))
            done.set()
    finally:
        done.set()


# What it tells


async def test_connect_tells_what_it_does(server, key, caplog):
    events, _ = await follow(f"{server.url}/close/{key}/1012,1008?reason=bye", backoff=eager())
    *events, gave_up = events
    assert events == [
        Connecting(1),
        Opened(1),
        Ended(1, Close(1012, "bye"), None, None, 0.01),
        Connecting(2),
        Opened(2),
        Ended(2, Close(1008, "bye"), None, None, None),
    ]
    assert gave_up.last == events[-1]
    [record] = [record for record in caplog.records if record.name == "asgi_closecodes.client"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "the session ended with 1012; the next attempt is in 0.0 s"


async def test_hook_that_fails_harms_nothing(server, key, caplog):
    def fail(event):
        raise LookupError("a bug in the hook")

    async for websocket in connect(f"{server.url}/close/{key}/1000", on_event=fail):
        assert [message async for message in websocket] == []
    messages = [record.getMessage() for record in caplog.records if record.exc_info]
    assert messages == [f"on_event failed at {name}" for name in ("Connecting", "Opened", "Ended")]


async def test_hook_that_would_never_run_is_refused():
    async def hook(event):
        pass

    with pytest.raises(TypeError, match="use a plain function"):
        connect("ws://127.0.0.1", on_event=hook)


@pytest.mark.parametrize(
    ("url", "options", "error"),
    [
        ("nonsense", {}, httpx.UnsupportedProtocol),
        ("ftp://127.0.0.1", {}, httpx.UnsupportedProtocol),
        ("ws://127.0.0.1:x", {}, httpx.InvalidURL),
        ("{server.url}/echo/key", {"headers": {"x": "a\r\nb"}}, httpx.LocalProtocolError),
        ("{server.url}/echo/key", {"no_such_option": 1}, TypeError),
    ],
)
async def test_mistake_is_not_retried(server, url, options, error):
    with anyio.fail_after(10), pytest.raises(error):
        async for _ in connect(url.format(server=server), backoff=eager(), **options):
            pass
