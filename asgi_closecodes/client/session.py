"""Sessions of httpx-ws, one after another, each hosted by a task of its own."""

from __future__ import annotations

import asyncio
import io
import logging
import math
import ssl
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import anyio
import anyio.lowlevel
import httpcore
import httpx
import httpx_ws
import wsproto
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.utilities import LocalProtocolError

from asgi_closecodes import concurrency
from asgi_closecodes.codes import Close, CloseCode
from asgi_closecodes.concurrency import on_asyncio

from .backoff import Backoff
from .events import ClientEvent, Connecting, Ended, GaveUp, Opened

PATIENCE = 5.0
"""Seconds that a peer may take to read a close frame, and a turn to read of the end of its session."""

_LOGGER = logging.getLogger("asgi_closecodes.client")

_LOST = Close(CloseCode.ABNORMAL_CLOSURE)
_DONE_WITH = Close(CloseCode.NORMAL_CLOSURE)
_DONE = frozenset({CloseCode.NORMAL_CLOSURE, CloseCode.NO_STATUS_RCVD})
_MISTAKES = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)  # transport errors in name only


_REMEDY = "with `async with session:` around its turn the loop goes on by the close code, whatever call finds the end"


class _Connection(wsproto.connection.Connection):
    """A connection whose messages are whole, and bounded: httpx-ws would gather fragments without end."""

    def __init__(self, max_size: int | None) -> None:
        super().__init__(ConnectionType.CLIENT)
        self._max_size = math.inf if max_size is None else max_size
        self._size = 0
        self._parts: Any = None

    def events(self) -> Generator[wsproto.events.Event, None, None]:
        """Yield what was received; the end of it is a message that is too big."""
        for event in super().events():
            if not isinstance(event, wsproto.events.Message):
                yield event
                continue
            data = event.data
            self._size += len(data.encode() if isinstance(data, str) and not data.isascii() else data)
            if self._size > self._max_size:
                reason = f"a message of more than {self._max_size} bytes"
                yield wsproto.events.CloseConnection(CloseCode.MESSAGE_TOO_BIG, reason)
                return
            if self._parts is None and not event.message_finished:
                self._parts = io.StringIO() if isinstance(data, str) else io.BytesIO()
            if self._parts is not None:
                self._parts.write(data)
            if event.message_finished:
                whole = event if self._parts is None else type(event)(self._parts.getvalue())
                self._size, self._parts = 0, None
                yield whole


class ClientSession(httpx_ws.AsyncWebSocketSession):
    """A session of httpx-ws that knows how it ended, and iterates over its messages until then.

    ``async with session:`` is a block that ends with the session, whatever call found that it has ended.
    """

    ended: Close | None = None
    """How it ended: what the server closed with, 1006 for a lost connection, 1009 for a message that is too big.

    None as long as nobody has received that.
    """
    heard = False
    """Whether there was a message."""

    def __init__(self, *arguments: Any, max_size: int | None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.connection = _Connection(max_size)
        self._blocks = 0
        self._send_until = math.inf
        self._ends: WeakSet[BaseException] = WeakSet()

    async def __aenter__(self) -> Self:  # type: ignore[misc]  # httpx-ws enters it by _Host
        self._blocks += 1
        return self

    async def __aexit__(  # type: ignore[misc]
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Swallow what this session raised at its end, in exception groups too, and nothing else."""
        self._blocks -= 1
        if isinstance(error, BaseExceptionGroup):
            own, rest = error.split(lambda part: self._is_end(part))  # noqa: PLW0108 - Python 3.11 takes no method
            if own is not None and rest is not None:
                raise rest
            return rest is None
        return error is not None and self._is_end(error)

    def _is_end(self, error: BaseException) -> bool:
        return any(error is end for end in self._ends)  # another one may have no hash

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        """Return the next message; the end of the session is the end of the loop."""
        try:
            event = await self.receive()
        except (httpx_ws.WebSocketDisconnect, httpx_ws.WebSocketNetworkError):
            raise StopAsyncIteration from None
        if isinstance(event, wsproto.events.TextMessage):
            return event.data
        assert isinstance(event, wsproto.events.BytesMessage)
        return bytes(event.data)

    async def receive(self, timeout: float | None = None) -> wsproto.events.Event:
        """Return the next event, as httpx-ws does; at the end of the session raise, however often it is asked."""
        if self.ended is None:
            try:
                event = await super().receive(timeout)
            except httpx_ws.WebSocketDisconnect as end:
                self.ended = Close(end.code, end.reason or "")
            except (httpx_ws.WebSocketNetworkError, anyio.EndOfStream, anyio.ClosedResourceError):
                self.ended = self.ended or _LOST
            else:
                self.heard = True
                return event
            self._send_event.close()  # other tasks that receive are told too
        if self.ended is _LOST:
            raise self._end(httpx_ws.WebSocketNetworkError())
        raise self._end(httpx_ws.WebSocketDisconnect(self.ended.code, self.ended.reason))

    async def send(self, event: wsproto.events.Event) -> None:
        """Send an event, as httpx-ws does; after the end that raises ``WebSocketNetworkError`` too."""
        try:
            data = self.connection.send(event)
            async with self._write_lock:
                await self.stream.write(data)
        except LocalProtocolError as error:
            if self.connection.state is ConnectionState.OPEN:
                raise
            raise self._end(httpx_ws.WebSocketNetworkError()) from error
        except httpcore.WriteError as error:  # what the server said before is still to be received
            raise self._end(httpx_ws.WebSocketNetworkError()) from error

    def _end(self, error: httpx_ws.HTTPXWSException) -> httpx_ws.HTTPXWSException:
        self._ends.add(error)
        if not self._blocks:
            error.add_note(_REMEDY)
        return error

    async def send_text(self, data: str) -> None:
        """Send a text, as httpx-ws does; one that the end overtook is dropped outside of ``async with session:``."""
        await self._send_message(wsproto.events.TextMessage(data))

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes, as :meth:`send_text` does text."""
        await self._send_message(wsproto.events.BytesMessage(data))

    async def _send_message(self, event: wsproto.events.Event) -> None:
        # No exception may end the turn of a loop for the loop to go on. A turn that greets the server, and then
        # reads of the end, is left alone; one that goes on sending is told, or it would never end.
        try:
            await self.send(event)
        except httpx_ws.WebSocketNetworkError:
            now = anyio.current_time()
            self._send_until = min(self._send_until, now + PATIENCE)
            if self._blocks or self.ended is not None or now >= self._send_until:
                raise
            await anyio.lowlevel.checkpoint()

    async def _background_keepalive_ping(self, *arguments: Any) -> None:
        with suppress(httpx_ws.WebSocketNetworkError, anyio.ClosedResourceError):  # it has ended
            await super()._background_keepalive_ping(*arguments)

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str | None = None) -> None:
        """Close it, as httpx-ws does: without waiting for what the server says to that."""
        if self.ended is None and self.connection.state is ConnectionState.OPEN:
            self.ended = _LOST
        await super().close(code, reason)

    async def finish(self) -> Close:
        """Close with 1001 what is open; return how it ended, which nobody may have received yet.

        A server that closed at the same time has its say: that is how one that is full looks to a hurried loop.
        """
        with anyio.move_on_after(PATIENCE):
            if self.ended is None and self.connection.state is ConnectionState.OPEN:
                with suppress(httpx_ws.HTTPXWSException):
                    await self.send(wsproto.events.CloseConnection(CloseCode.GOING_AWAY))
            with suppress(httpx_ws.HTTPXWSException):
                while self.ended is None:
                    await self.receive()
        return self.ended or Close(CloseCode.GOING_AWAY)


class _Host:
    """What httpx-ws enters as long as the session is open: ``async with`` on the session itself is the user's."""

    def __init__(self, *arguments: Any, max_size: int | None, **options: Any) -> None:
        self.session = ClientSession(*arguments, max_size=max_size, **options)

    async def __aenter__(self) -> Self:
        await super(ClientSession, self.session).__aenter__()
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        return await super(ClientSession, self.session).__aexit__(*error)  # type: ignore[arg-type]


@asynccontextmanager
async def _session(
    url: str,
    client: httpx.AsyncClient | None,
    tls: ssl.SSLContext | None,
    max_size: int | None,
    options: Mapping[str, Any],
) -> AsyncGenerator[ClientSession]:
    host: Any = partial(_Host, max_size=max_size)
    own = {**options, "headers": dict(options.get("headers") or {})}  # httpx-ws adds its own to what it is given
    async with (
        nullcontext(client) if client is not None else httpx.AsyncClient(verify=tls or True) as open_client,
        httpx_ws.aconnect_ws(url, open_client, session_class=host, **own) as hosted,
    ):
        yield hosted.session


class _Attempt:
    """One attempt to connect, and the session it gives, in a task of its own.

    httpx-ws keeps a task group open for each session, which must not stay open in the task of a loop that may be
    left by ``break`` (PEP 789).
    """

    def __init__(self, context: AbstractAsyncContextManager[ClientSession], open_timeout: float | None) -> None:
        self.session: ClientSession | None = None
        self.error: Exception | None = None
        self.decided = anyio.Event()
        self.over = anyio.Event()
        self._left = anyio.Event()
        self._open_timeout = math.inf if open_timeout is None else open_timeout
        self._scope = anyio.CancelScope(deadline=anyio.current_time() + self._open_timeout)
        self._soon = _soon()
        concurrency.spawn(self._run, context)

    async def _run(self, context: AbstractAsyncContextManager[ClientSession]) -> None:
        try:
            with self._scope:
                async with context as session:
                    self._scope.deadline = math.inf
                    self.session = session
                    self.decided.set()
                    try:
                        await self._left.wait()
                    finally:
                        # httpx-ws would do the same at its exit, and wait for a mute peer for ever.
                        with anyio.CancelScope(shield=True):
                            with anyio.move_on_after(PATIENCE):
                                # Open still: it is its stream that was wrong, 1002 or 1009, and the server is told.
                                await session.close((session.ended or _DONE_WITH).code)
                            await session.stream.aclose()
            if self._scope.cancelled_caught and self.session is None:
                raise httpx.ConnectTimeout(f"the handshake took more than {self._open_timeout} s")
        except Exception as error:
            self.error = error
        finally:
            self.decided.set()
            self.over.set()

    def leave(self) -> None:
        """Have it end, whatever it does."""
        if not self.decided.is_set():
            self._scope.cancel()
        self._left.set()

    def leave_from_any_thread(self) -> None:
        """Have it end soon."""
        with suppress(RuntimeError):  # the event loop is closed
            self._soon(self.leave)


def _soon() -> Callable[[Callable[[], object]], object]:
    """Return what has this event loop call a function soon."""
    if on_asyncio():
        return asyncio.get_running_loop().call_soon_threadsafe
    import trio  # noqa: PLC0415 - only where it runs

    return trio.lowlevel.current_trio_token().run_sync_soon


class Sessions:
    """Sessions, each opened when the one before it has ended: see :func:`asgi_closecodes.client.connect`.

    No async generator: trio does not let a loop over one be left by ``break`` without a warning.
    """

    _attempt: _Attempt | None = None
    """The latest one."""

    def __init__(
        self,
        url: str,
        client: httpx.AsyncClient | None,
        backoff: Backoff,
        *,
        on_event: Callable[[ClientEvent], object] | None,
        open_timeout: float | None,
        max_size: int | None,
        options: Mapping[str, Any],
    ) -> None:
        tls = httpx.create_ssl_context() if client is None else None  # once, since it reads all certificates
        self._open = partial(_session, url, client, tls, max_size, options)
        self._open_timeout = open_timeout
        self._backoff = backoff
        self._on_event = on_event
        self._number = 0
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ClientSession:
        """Return the next session; what this raises, cancellation included, is the end.

        :raises GaveUp: if there is no point in another attempt.
        """
        try:
            return await self._next()
        except BaseException:
            self._leave()
            raise

    async def _next(self) -> ClientSession:
        while not self._is_over:
            if self._attempt is not None:
                await anyio.sleep(await self._end(self._attempt))
            self._number += 1
            self._tell(Connecting(self._number))
            self._attempt = attempt = _Attempt(self._open(), self._open_timeout)
            await attempt.decided.wait()
            if attempt.session is not None:
                self._backoff.opened()
                self._tell(Opened(self._number))
                return attempt.session
        raise StopAsyncIteration

    async def _end(self, attempt: _Attempt) -> float:
        """End an attempt, or its session; return the seconds to wait until the next one."""
        close, status, error = _LOST, None, attempt.error
        if attempt.session is not None:
            error = None  # there was a connection; its close says the rest
            close = await attempt.session.finish()
            if attempt.session.heard:
                self._backoff.received()
        if isinstance(error, httpx_ws.WebSocketUpgradeError):
            status = error.response.status_code
            wait = self._backoff.refused(status, error.response.headers.get("retry-after", ""))
        elif error is not None and not _is_lost(error):
            raise error
        else:
            wait = self._backoff.closed(close.code, close.reason)
        attempt.leave()
        await attempt.over.wait()
        ended = Ended(self._number, close, status, error, wait)
        self._tell(ended)
        if wait is not None:
            _LOGGER.warning("%s; the next attempt is in %.1f s", ended, wait)
            return wait
        if close.code in _DONE:
            raise StopAsyncIteration
        raise GaveUp(ended) from error

    def _tell(self, event: ClientEvent) -> None:
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                _LOGGER.exception("on_event failed at %s", type(event).__name__)

    def _leave(self) -> None:
        self._is_over = True
        if self._attempt is not None:
            self._attempt.leave()

    async def aclose(self) -> None:
        """End the session that is open, and return when that is done; there will be no other."""
        self._leave()
        if self._attempt is not None:
            await self._attempt.over.wait()

    def __del__(self) -> None:
        """End what a loop left open."""
        if self._attempt is not None:
            self._attempt.leave_from_any_thread()


def _is_lost(error: Exception) -> bool:
    return isinstance(error, httpx.TransportError) and not isinstance(error, _MISTAKES)
