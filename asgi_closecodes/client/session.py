"""Sessions of httpx-ws, one after another, each hosted by a task of its own."""

from __future__ import annotations

import asyncio
import inspect
import io
import logging
import math
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
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
from asgi_closecodes.naming import shown

from .backoff import RENEWABLE, Backoff
from .events import ClientEvent, Connecting, Ended, GaveUp, Opened

CLOSE_TIMEOUT_S = 5.0
"""Deadline for the closing handshake."""

SEND_GRACE_S = 5.0
"""Time after its end for which a session drops messages instead of raising."""

_LOGGER = logging.getLogger("asgi_closecodes.client")

_ABNORMAL_CLOSURE = Close(CloseCode.ABNORMAL_CLOSURE)
_NORMAL_CLOSURE = Close(CloseCode.NORMAL_CLOSURE)
_FINAL_CODES = frozenset({CloseCode.NORMAL_CLOSURE, CloseCode.NO_STATUS_RCVD})
_USAGE_ERRORS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)  # transport errors in name only

_REMEDY = "put the turn into `async with session:`, which swallows the end of its session so that the loop reconnects"


class _Connection(wsproto.connection.Connection):
    """A connection that joins fragments to messages of bounded size. httpx-ws would join them without bound."""

    def __init__(self, max_size: int | None) -> None:
        super().__init__(ConnectionType.CLIENT)
        self._max_size = math.inf if max_size is None else max_size
        self._size = 0
        self._parts: Any = None

    def events(self) -> Generator[wsproto.events.Event, None, None]:
        """Yield received events, with whole messages. A message that is too big yields a close and ends them."""
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
    """A session of httpx-ws that keeps its close, and iterates over its messages until then.

    The block of ``async with session:`` ends with the session, whichever call notices its end.
    """

    ended: Close | None = None
    """The server's close, 1006 for a lost connection, 1009 for a message that is too big.

    None until a call received it.
    """
    has_received = False
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
        """Swallow the errors that this session raised at its end, in exception groups too. All others pass."""
        self._blocks -= 1
        if isinstance(error, BaseExceptionGroup):
            own, rest = error.split(lambda part: self._is_end(part))  # noqa: PLW0108 - Python 3.11 takes no method
            if own is not None and rest is not None:
                raise rest
            return rest is None
        return error is not None and self._is_end(error)

    def _is_end(self, error: BaseException) -> bool:
        return any(error is end for end in self._ends)  # by identity: a foreign error may be unhashable

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        """Return the next message. The loop ends with the session."""
        try:
            event = await self.receive()
        except (httpx_ws.WebSocketDisconnect, httpx_ws.WebSocketNetworkError):
            raise StopAsyncIteration from None
        if isinstance(event, wsproto.events.TextMessage):
            return event.data
        assert isinstance(event, wsproto.events.BytesMessage)
        return bytes(event.data)

    async def receive(self, timeout: float | None = None) -> wsproto.events.Event:
        """Return the next event, as httpx-ws does. After the end of the session each call raises."""
        if self.ended is None:
            try:
                event = await super().receive(timeout)
            except httpx_ws.WebSocketDisconnect as end:
                self.ended = Close(end.code, end.reason or "")
            except (httpx_ws.WebSocketNetworkError, anyio.EndOfStream, anyio.ClosedResourceError):
                self.ended = self.ended or _ABNORMAL_CLOSURE
            else:
                self.has_received = True
                return event
            self._send_event.close()  # wakes other tasks that receive
        if self.ended is _ABNORMAL_CLOSURE:
            raise self._end(httpx_ws.WebSocketNetworkError())
        raise self._end(httpx_ws.WebSocketDisconnect(self.ended.code, self.ended.reason))

    async def send(self, event: wsproto.events.Event) -> None:
        """Send an event, as httpx-ws does. After the end it raises ``WebSocketNetworkError`` too."""
        try:
            data = self.connection.send(event)
            async with self._write_lock:
                await self.stream.write(data)
        except LocalProtocolError as error:
            if self.connection.state is ConnectionState.OPEN:
                raise
            raise self._end(httpx_ws.WebSocketNetworkError()) from error
        except httpcore.WriteError as error:  # the server's close may still be unread
            raise self._end(httpx_ws.WebSocketNetworkError()) from error

    def _end(self, error: httpx_ws.HTTPXWSException) -> httpx_ws.HTTPXWSException:
        self._ends.add(error)
        if not self._blocks:
            error.add_note(_REMEDY)
        return error

    async def send_text(self, data: str) -> None:
        """Send a text, as httpx-ws does. Outside of ``async with session:``, one sent after the end is dropped."""
        await self._send_message(wsproto.events.TextMessage(data))

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes, as :meth:`send_text` does text."""
        await self._send_message(wsproto.events.BytesMessage(data))

    async def _send_message(self, event: wsproto.events.Event) -> None:
        # An exception would leave the loop. A turn that sends a greeting and then receives gets none: it receives
        # the end. A turn that only sends has to get one, or it would never end.
        try:
            await self.send(event)
        except httpx_ws.WebSocketNetworkError:
            now = anyio.current_time()
            self._send_until = min(self._send_until, now + SEND_GRACE_S)
            if self._blocks or self.ended is not None or now >= self._send_until:
                raise
            await anyio.lowlevel.checkpoint()

    async def _background_keepalive_ping(self, *arguments: Any) -> None:
        with suppress(httpx_ws.WebSocketNetworkError, anyio.ClosedResourceError):  # it has ended
            await super()._background_keepalive_ping(*arguments)

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str | None = None) -> None:
        """Send a close, as httpx-ws does, without waiting for the answer."""
        if self.ended is None and self.connection.state is ConnectionState.OPEN:
            self.ended = _ABNORMAL_CLOSURE
        await super().close(code, reason)

    async def finish(self) -> Close:
        """Close with 1001 if it is open. Return the close, received or not.

        If the server closed at the same time, its close counts: a full server closes before a short turn ends.
        """
        with anyio.move_on_after(CLOSE_TIMEOUT_S):
            if self.ended is None and self.connection.state is ConnectionState.OPEN:
                with suppress(httpx_ws.HTTPXWSException):
                    await self.send(wsproto.events.CloseConnection(CloseCode.GOING_AWAY))
            with suppress(httpx_ws.HTTPXWSException):
                while self.ended is None:
                    await self.receive()
        return self.ended or Close(CloseCode.GOING_AWAY)


class _Host:
    """The context manager that httpx-ws enters. ``async with`` on the session itself is the user's."""

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
    options: Mapping[str, Any],
    *,
    client: httpx.AsyncClient | None,
    tls: ssl.SSLContext | None,
    max_size: int | None,
) -> AsyncGenerator[ClientSession]:
    host: Any = partial(_Host, max_size=max_size)
    own = {**options, "headers": dict(options.get("headers") or {})}  # httpx-ws adds headers to the dict it gets
    async with (
        nullcontext(client) if client is not None else httpx.AsyncClient(verify=tls or True) as open_client,
        httpx_ws.aconnect_ws(url, open_client, session_class=host, **own) as hosted,
    ):
        yield hosted.session


class _Attempt:
    """One attempt to connect, and its session, in a task of its own.

    httpx-ws keeps a task group open for each session. A loop may be left by ``break``, so its task must not hold that
    group (PEP 789).
    """

    def __init__(self, context: AbstractAsyncContextManager[ClientSession], open_timeout: float | None) -> None:
        self.session: ClientSession | None = None
        self.error: Exception | None = None
        self.handshake_done = anyio.Event()
        self.finished = anyio.Event()
        self._stop_requested = anyio.Event()
        self._open_timeout = math.inf if open_timeout is None else open_timeout
        self._scope = anyio.CancelScope(deadline=anyio.current_time() + self._open_timeout)
        self._call_soon = _call_soon()
        concurrency.spawn(self._run, context)

    async def _run(self, context: AbstractAsyncContextManager[ClientSession]) -> None:
        try:
            with self._scope:
                async with context as session:
                    self._scope.deadline = math.inf
                    self.session = session
                    self.handshake_done.set()
                    try:
                        await self._stop_requested.wait()
                    finally:
                        # httpx-ws would close too, but wait without limit for a peer that does not read.
                        with anyio.CancelScope(shield=True):
                            with anyio.move_on_after(CLOSE_TIMEOUT_S):
                                # `ended` is set on an open connection after 1002 or 1009, which the server gets too.
                                await session.close((session.ended or _NORMAL_CLOSURE).code)
                            await session.stream.aclose()
            if self._scope.cancelled_caught and self.session is None:
                raise httpx.ConnectTimeout(f"the handshake took more than {self._open_timeout} s")
        except Exception as error:
            self.error = error
        finally:
            self.handshake_done.set()
            self.finished.set()

    def stop(self) -> None:
        """End it, in whichever state it is."""
        if not self.handshake_done.is_set():
            self._scope.cancel()
        self._stop_requested.set()

    def stop_threadsafe(self) -> None:
        """End it soon, from any thread."""
        with suppress(RuntimeError):  # the event loop is closed
            self._call_soon(self.stop)


def _call_soon() -> Callable[[Callable[[], object]], object]:
    """Return a function that schedules calls in this event loop from any thread."""
    if on_asyncio():
        return asyncio.get_running_loop().call_soon_threadsafe
    import trio  # noqa: PLC0415 - only where it runs

    return trio.lowlevel.current_trio_token().run_sync_soon


def _tls_of(url: str) -> ssl.SSLContext:
    """Return what connections to ``url`` take: made once, since all certificates are read for TLS, and only for TLS."""
    if url.lower().startswith(("ws:", "http:")):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody
    return httpx.create_ssl_context()


class Sessions:
    """Iterator over sessions, each opened after the end of the one before: see :func:`asgi_closecodes.client.connect`.

    Not an async generator: trio warns when a loop over one is left by ``break``.
    """

    _attempt: _Attempt | None = None
    """The latest attempt."""

    def __init__(
        self,
        url: str,
        client: httpx.AsyncClient | None,
        backoff: Backoff,
        *,
        on_event: Callable[[ClientEvent], object] | None,
        renew: Callable[[], Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None] | None,
        open_timeout: float | None,
        max_size: int | None,
        options: Mapping[str, Any],
    ) -> None:
        tls = None if client is not None else _tls_of(url)
        self._url = url
        self._options = options
        self._open = partial(_session, client=client, tls=tls, max_size=max_size)
        self._renew = renew
        self._open_timeout = open_timeout
        self._backoff = backoff
        self._on_event = on_event
        self._number = 0
        self._is_stopped = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ClientSession:
        """Return the next session. Any exception, cancellation included, ends the iteration.

        :raises GaveUp: if it does not reconnect.
        """
        try:
            return await self._next()
        except BaseException:
            self._stop()
            raise

    async def _next(self) -> ClientSession:
        while not self._is_stopped:
            if self._attempt is not None:
                ended = await self._end(self._attempt)
                assert ended.retry_in is not None
                await anyio.sleep(ended.retry_in)
                if self._can_renew and (ended.status or ended.close.code) in RENEWABLE:
                    await self._renew_options(ended)
                if self._is_stopped:
                    break
            self._number += 1
            self._notify(Connecting(self._number))
            self._attempt = attempt = _Attempt(self._open(self._url, self._options), self._open_timeout)
            await attempt.handshake_done.wait()
            if attempt.session is not None:
                self._backoff.opened()
                self._notify(Opened(self._number))
                return attempt.session
        raise StopAsyncIteration

    async def _end(self, attempt: _Attempt) -> Ended:
        """End an attempt, or its session.

        :raises GaveUp: if the next one should not be made.
        :raises StopAsyncIteration: after a final code.
        """
        close, status, error = _ABNORMAL_CLOSURE, None, attempt.error
        if attempt.session is not None:
            error = None  # there was a connection, and its close
            close = await attempt.session.finish()
            if attempt.session.has_received:
                self._backoff.received()
        if isinstance(error, httpx_ws.WebSocketUpgradeError):
            status = error.response.status_code
            retry_after = error.response.headers.get("retry-after", "")
            wait = self._backoff.refused(status, retry_after, can_renew=self._can_renew)
        elif error is not None and not _is_connection_error(error):
            raise error
        else:
            wait = self._backoff.closed(close.code, close.reason, can_renew=self._can_renew)
        attempt.stop()
        await attempt.finished.wait()
        ended = Ended(self._number, close, status, error, wait)
        self._notify(ended)
        if wait is not None:
            _LOGGER.warning("%s; the next attempt is in %.1f s", ended, wait)
            return ended
        if close.code in _FINAL_CODES:
            raise StopAsyncIteration
        raise GaveUp(ended) from error

    @property
    def _can_renew(self) -> bool:
        return self._renew is not None

    async def _renew_options(self, ended: Ended) -> None:
        """Replace the arguments that ``renew`` returns.

        :raises GaveUp: if it raises, or returns no mapping.
        """
        assert self._renew is not None
        try:
            returned = self._renew()
            changes = await returned if inspect.isawaitable(returned) else returned
            if not isinstance(changes, Mapping | None):
                raise TypeError(f"renew returned {shown(changes)}; return a mapping of arguments to replace, or None")
        except Exception as error:
            failed = replace(ended, retry_in=None, renew_error=error)
            self._notify(failed)
            raise GaveUp(failed) from error
        self._options = {**self._options, **(changes or {})}
        self._url = self._options.pop("url", self._url)

    def _notify(self, event: ClientEvent) -> None:
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                _LOGGER.exception("on_event failed at %s", type(event).__name__)

    def _stop(self) -> None:
        self._is_stopped = True
        if self._attempt is not None:
            self._attempt.stop()

    async def aclose(self) -> None:
        """End the open session, and wait for that. There will be no other."""
        self._stop()
        if self._attempt is not None:
            await self._attempt.finished.wait()

    def __del__(self) -> None:
        """End the session that a loop left open."""
        if self._attempt is not None:
            self._attempt.stop_threadsafe()


def _is_connection_error(error: Exception) -> bool:
    return isinstance(error, httpx.TransportError) and not isinstance(error, _USAGE_ERRORS)
