"""The page of the session: its table of endings, and its examples, on a real server."""

import asyncio
import re

import pytest
from fastapi import FastAPI, HTTPException, WebSocket, WebSocketException

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Guard, TryAgainLater
from asgi_closecodes.testing import serve
from tests.support.peers import wait_until
from tests.support.servers import ROOT

TEXT = (ROOT / "asgi_closecodes/session/README.md").read_text(encoding="utf-8")
ROWS = {
    cells[0]: cells[1:] for cells in re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| [^|]*\|$", TEXT, re.MULTILINE)
}


class Mapped(Exception):
    """An exception in ``exceptions=``, for 3003."""


class Cancelled(BaseException):
    """Stands for a cancellation from outside."""


def raising(beginning, *errors):
    """Return the row that begins so, beside each error that its handler raises."""
    [row] = [row for row in ROWS if row.startswith(beginning)]
    return [
        pytest.param(error, *ROWS[row], id=f"{type(error).__name__}-{number}") for number, error in enumerate(errors)
    ]


ENDINGS = [
    *raising("returns", None),
    *raising("raises any other exception", ValueError("secret"), OSError("secret"), TimeoutError()),
    *raising("raises `CloseWith", CloseWith(4003, "banned")),
    *raising("raises `TryAgainLater", TryAgainLater(cause="database")),
    *raising("raises Starlette's `WebSocketException", WebSocketException(3003, "no")),
    *raising("is cancelled", Cancelled()),
]


def is_as(cell, close):
    """Whether ``close`` is what a cell of the table says: a code or an HTTP status, then a reason."""
    if status := re.match(r"HTTP (\d+)", cell):
        return close.status == int(status[1])
    code, reason = re.match(r"(\d+)(?:, (?:`([^`]*)`|no reason))?$", cell).groups()
    expected = re.escape(reason or "").replace("…", r"[\w.]+")
    return close.code == int(code) and bool(re.fullmatch(expected, close.reason))


def application(error):
    app = FastAPI()
    app.add_middleware(CloseCodeMiddleware, guard=Guard(exceptions={Mapped: 3003}))

    @app.websocket("/{when}")
    async def endpoint(websocket: WebSocket, when: str):
        if when == "after":
            await websocket.accept()
        if isinstance(error, Cancelled):
            asyncio.current_task().cancel()
            await asyncio.sleep(60)
        if error is not None:
            raise error

    return app


@pytest.mark.parametrize(("error", "before", "after"), ENDINGS)
def test_ending_becomes_what_the_table_says(error, before, after):
    after = before if after == "the same" else after
    with serve(application(error)) as server:
        for when, cell in (("before", before), ("after", after)):
            close = server.connect(f"/{when}").wait_closed()
            assert is_as(cell, close), (when, cell, close)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HTTPException(404), 1008),
        (HTTPException(500), 1011),
        (HTTPException(429), 1013),
        (HTTPException(503), 1013),
        (Mapped(), 3003),
        (ExceptionGroup("", [Mapped(), Mapped()]), 3003),
        (ExceptionGroup("", [Mapped(), ValueError()]), 1011),
    ],
)
def test_exception_after_accept_becomes_its_code(error, code):
    with serve(application(error)) as server:
        assert server.connect("/after").wait_closed().code == code
        if isinstance(error, HTTPException):
            assert server.connect("/before").wait_closed().status == error.status_code


def example(title):
    """Return the names of the first example below ``title``."""
    code = TEXT.partition(f"\n## {title}\n")[2].partition("```python\n")[2].partition("```")[0]
    names = {}
    exec(compile(code, f"the example of {title}", "exec"), names)
    return names


def test_example_of_a_missing_cookie_closes_with_4001():
    with serve(example("Close on purpose")["app"]) as server:
        assert server.connect("/chat").wait_closed().code == 4001
        client = server.connect("/chat", headers={"cookie": "token=ann"})
        client.send("hello")
        assert client.receive() == "ann: hello"


def test_example_of_a_broadcast_survives_dead_members():
    names = example("Write to other sessions")
    members = names["members"]
    with serve(names["app"]) as server:
        speaker, leaver = server.connect("/room"), server.connect("/room")
        speaker.send("one")
        assert (speaker.receive(), leaver.receive()) == ("one", "one")
        before = {*members}
        leaver.close()
        assert wait_until(lambda: len(members) == 1)
        members.update(before)  # as where its handler is still busy with something else
        speaker.send("two")
        assert speaker.receive() == "two"
        assert wait_until(lambda: len(members) == 1), "the dead one is discarded"
        speaker.send("three")
        assert speaker.receive() == "three"
