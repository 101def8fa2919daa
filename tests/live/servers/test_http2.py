"""WebSockets over HTTP/2 on hypercorn, several in one connection."""

import pytest

from tests.support.http2 import Http2
from tests.support.peers import connect, snapshot, wait_until

from .at_once import on_each, serve_all

APPS = {"bare": "tests.live.servers.apps:bare", "wrapped": "tests.live.servers.wrapped:wrapped"}
HYPERCORN = ["hypercorn-asyncio", "hypercorn-trio"]


@pytest.mark.parametrize("app", APPS)
def test_http2_close_ends_all_sockets_of_the_connection(app, tmp_path):
    """With the middleware and without: hypercorn raises KeyError when the client has answered the close.

    On trio that ends its worker.
    """

    def check(running):
        with Http2(running) as connection:
            other, failing = sockets = connection.open("/echo"), connection.open("/raise-on-message")
            assert [socket.status for socket in sockets] == [200, 200]
            other.send("x")
            other.read_until(lambda: other.messages)
            assert other.messages == ["x"]
            failing.send("x")
            failing.read_until(lambda: failing.close)
            code, reason = failing.close
            assert code == 1011
            assert reason.startswith("internal error; ref=") == (app == "wrapped")
            failing.answer_close()
            other.send("still there?")
            other.read_until(lambda: len(other.messages) == 2)
            assert connection.is_over
            assert other.close is None
        if running.setup == "hypercorn-trio":
            assert running.process.wait(20) is not None
        else:
            assert app == "bare" or wait_until(lambda: snapshot(running)["open"] == 0)
            assert connect(running, "/echo", say="x", patience=0.5).open  # other connections are left alone

    with serve_all(APPS[app], tmp_path, HYPERCORN) as servers:
        on_each(servers, check)


def test_http2_refusal_ends_no_other_socket(tmp_path):
    """By default it is answered by HTTP."""

    def check(running):
        with Http2(running) as connection:
            other, refused = connection.open("/echo"), connection.open("/auto/echo")
            assert [other.status, refused.status] == [200, 503]
            other.send("x")
            other.read_until(lambda: other.messages)
            assert other.messages == ["x"]

    with serve_all(APPS["wrapped"], tmp_path, HYPERCORN) as servers:
        on_each(servers, check)
