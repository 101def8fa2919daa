"""What the page is told, without a server."""

import json
import logging

import anyio
import pytest
from starlette.websockets import WebSocket

from demo_app.feed import Counted, Feed, Tail
from tests.support.asgi import Handler, Peer


def record(name, level, message):
    return logging.LogRecord(name, level, __file__, 1, message, (), None)


def messages(lines):
    return [json.loads(line)["message"] for line in lines]


def test_tail_has_the_last_lines_and_tells_each_once():
    tail = Tail(length=3)
    for number in range(5):
        tail.handle(record("asgi_closecodes.gate", logging.INFO, f"line {number}"))
    lines, written = tail.since(0)
    assert (messages(lines), written) == (["line 2", "line 3", "line 4"], 5)
    assert tail.since(written) == ([], 5)
    tail.handle(record("asgi_closecodes.gate", logging.INFO, "line 5"))
    assert messages(tail.since(written)[0]) == ["line 5"]


def test_tail_leaves_out_what_a_server_says_by_the_way():
    tail = Tail()
    tail.handle(record("uvicorn.error", logging.INFO, "connection open"))
    tail.handle(record("uvicorn.error", logging.ERROR, "Exception in ASGI application"))
    assert messages(tail.since(0)[0]) == ["Exception in ASGI application"]


@pytest.mark.anyio
async def test_page_that_left_is_told_nothing_more():
    peer = Peer("what does a page have to say?")
    feed = Feed(lambda: {"sessions": 3}, Tail())
    with anyio.fail_after(10):  # whether or not sending to it raises
        await feed.serve(WebSocket(peer.scope, peer.receive, peer.send))
    [_, *told] = peer.sent
    assert all(json.loads(message["text"]) == {"sessions": 3, "lines": []} for message in told)


@pytest.mark.anyio
async def test_sessions_are_counted_whatever_becomes_of_them():
    async def handler(scope, receive, send):
        seen.append(bare.sessions)
        await Handler(ValueError())(scope, receive, send)

    seen = []
    bare = Counted(handler)
    with pytest.raises(ValueError):
        await Peer().visit(bare)
    assert (seen, bare.sessions) == ([1], 0)
