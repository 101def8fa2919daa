"""Chat room on FastAPI: two sessions a person, and a database with two connections.

``uvicorn demo_app.chat:app``. Its page is on ``/``; a signed cookie identifies the person.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sqlite3
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from fastapi import Cookie, Depends, FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, StringConstraints

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Guard, Session, TryAgainLater
from asgi_closecodes.gates import MaxSessionsPerKey
from asgi_closecodes.logs import configure_logging

from .pages import STATIC, Static, page

MAX_CONNECTIONS = 2
"""Concurrent queries of the database."""

QUERY_TIMEOUT_S = 0.5
"""Deadline of a query for a connection."""

MAX_BACKLOG = 100
"""Undelivered messages of a member."""

# Admission: this is all that it takes.


def session_of(websocket: WebSocket) -> Session:
    """Return the middleware's session of this connection."""
    session: Session = websocket.scope["extensions"]["closecodes"]
    return session


async def authenticated(websocket: WebSocket, who: Annotated[str, Cookie()] = "") -> str:
    """Return the name of the person, and make it the key of the session.

    :raises CloseWith: 1008 for somebody who has not signed in.
    :raises TryAgainLater: if the person has two sessions already.
    """
    name, _, signature = who.partition(".")
    if not hmac.compare_digest(signature.encode(), _signature(name).encode()):
        raise CloseWith(1008, "sign in first")
    session_of(websocket).key = name
    return name


guard = Guard(gate=MaxSessionsPerKey(2, key=lambda session: session.key))


class Database:
    """Pool of connections; your driver has its own."""

    def __init__(self, file: Path) -> None:
        self._free = [
            sqlite3.connect(file, check_same_thread=False, isolation_level=None) for _ in range(MAX_CONNECTIONS)
        ]
        self._places = anyio.Semaphore(MAX_CONNECTIONS)
        self._free[0].execute("create table messages (room, name, text)")
        for connection in self._free:
            connection.create_function("sleep", 1, time.sleep)

    async def query(self, sql: str, *values: str) -> list[tuple[str, ...]]:
        """Return the rows.

        :raises TryAgainLater: if no connection is free in time; the client retries.
        """
        with anyio.move_on_after(QUERY_TIMEOUT_S) as scope:
            await self._places.acquire()
        if scope.cancelled_caught:
            raise TryAgainLater("the database is busy", cause="database")
        connection = self._free.pop()
        try:
            return await anyio.to_thread.run_sync(lambda: connection.execute(sql, values).fetchall())
        finally:
            self._free.append(connection)
            self._places.release()

    def close(self) -> None:
        """Close the connections."""
        for connection in self._free:
            connection.close()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Open the database while the application runs."""
    with TemporaryDirectory() as folder:
        app.state.database = Database(Path(folder, "chat.sqlite"))
        try:
            yield
        finally:
            app.state.database.close()


configure_logging()
app = FastAPI(lifespan=lifespan)
app.add_middleware(CloseCodeMiddleware, guard=guard)
app.mount("/static", Static())
app.add_route("/", page(STATIC / "chat.html"))

rooms: dict[str, dict[MemoryObjectSendStream[str], Session]] = {}


@app.websocket("/rooms/{room}")
async def chat(websocket: WebSocket, room: str, name: Annotated[str, Depends(authenticated)]) -> None:
    """Send each message to every member of the room, at the member's own pace."""
    database: Database = websocket.app.state.database
    history = await database.query("select name, text from messages where room = ? order by rowid desc limit 20", room)
    await websocket.accept()
    for author, text in reversed(history):
        await websocket.send_text(_message(author, text))

    inbox, news = anyio.create_memory_object_stream[str](MAX_BACKLOG)
    with inbox, news:
        async with anyio.create_task_group() as tasks:
            members = rooms.setdefault(room, {})
            members[inbox] = session_of(websocket)
            try:
                tasks.start_soon(_deliver, news, websocket)
                async for text in websocket.iter_text():
                    if text == "/slow":
                        await database.query("select sleep(5)")
                        continue
                    await database.query("insert into messages values (?, ?, ?)", room, name, text)
                    for member, session in [*members.items()]:
                        try:
                            member.send_nowait(_message(name, text))
                        except anyio.WouldBlock:
                            tasks.start_soon(session.shed, "slow")  # it does not read: do not wait for it
            finally:
                del members[inbox]
                if not members:
                    rooms.pop(room, None)
            tasks.cancel_scope.cancel()


async def _deliver(news: MemoryObjectReceiveStream[str], websocket: WebSocket) -> None:
    async for message in news:
        await websocket.send_text(message)


def _message(name: str, text: str) -> str:
    return json.dumps({"name": name, "text": text})


class Person(BaseModel):
    """Request body of a sign-in."""

    name: Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_]{1,20}$")]


@app.exception_handler(RequestValidationError)
async def unusable(_request: Request, _error: RequestValidationError) -> Response:
    """Describe a valid request. FastAPI's handler repeats the input, and fails on NaN and invalid Unicode."""
    return PlainTextResponse('send {"name": NAME}, 1 to 20 letters, digits and _\n', 422)


_KEY = secrets.token_bytes()


@app.post("/sign-in", status_code=204)
async def sign_in(person: Person, response: Response) -> None:
    """Accept any name; your application would ask for a password."""
    cookie = f"{person.name}.{_signature(person.name)}"
    response.set_cookie("who", cookie, httponly=True, samesite="strict")


def _signature(name: str) -> str:
    return hmac.digest(_KEY, name.encode(), "sha256").hex()
