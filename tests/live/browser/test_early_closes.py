"""What a page sees of a handshake that the handler closes."""

import pytest

from tests.support.servers import serve

OPEN = """
path => new Promise(resolve => {
    const socket = new WebSocket(location.origin.replace("http", "ws") + path, ["chat"]);
    socket.onclose = event => resolve([event.code, event.reason]);
})
"""


@pytest.fixture
def wrapped(tmp_path):
    with serve("uvicorn-sansio", "tests.live.servers.wrapped:wrapped", tmp_path, forked=True) as running:
        yield running


def test_page_sees_an_early_close_where_it_is_delivered(wrapped, new_page):
    page = new_page(tolerated="WebSocket connection to .* failed|favicon|404")
    page.goto(wrapped.url.replace("ws", "http", 1))
    assert page.evaluate(OPEN, "/early/close-4401-before-accept") == [4401, "sign in"]
    assert page.evaluate(OPEN, "/close-4401-before-accept") == [1006, ""]
