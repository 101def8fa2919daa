"""Sessions of httpx-ws, one after another, each hosted by a task of its own."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Self

import anyio
import httpx
import httpx_ws
import wsproto
from wsproto.connection import ConnectionState
from wsproto.utilities import LocalProtocolError

from asgi_closecodes import concurrency
from asgi_closecodes.codes import Close, CloseCode
from asgi_closecodes.concurrency import on_asyncio

from .backoff import Backoff
from .events import ClientEvent, Connecting, Ended, GaveUp, Opened

PATIENCE = 5.0
"""Seconds that a peer may take to read a close frame."""

_LOGGER = logging.getLogger("asgi_closecodes.client")

_LOST = Close(CloseCode.ABNORMAL_CLOSURE)
_DONE = frozenset({CloseCode.NORMAL_CLOSURE, CloseCode.NO_STATUS_RCVD})
_MISTAKES = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)  # transport errors in name only


class ClientSession(httpx_ws.AsyncWebSocketSession):
    """A session of httpx-ws that knows how it ended, and iterates over its messages until then."""

    ended: Close | None = None
    """What the server closed with, 1006 for a lost connection; None as long as nobody has received that."""
    heard = False
    """Whether there was a message."""

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
                raise
            except (httpx_ws.WebSocketNetworkError, anyio.EndOfStream, anyio.ClosedResourceError):
                self.ended = _LOST
            else:
                self.heard = True
                return event
        if self.ended is _LOST:
            raise httpx_ws.WebSocketNetworkError
        raise httpx_ws.WebSocketDisconnect(self.ended.code, self.ended.reason)

    async def send(self, event: wsproto.events.Event) -> None:
        """Send an event, as httpx-ws does; after the end that raises ``WebSocketNetworkError`` too."""
        try:
            await super().send(event)
        except LocalProtocolError as error:
            if self.connection.state is ConnectionState.OPEN:
                raise
            raise httpx_ws.WebSocketNetworkError from error

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str | None = None) -> None:
        """Close it, as httpx-ws does: without waiting for what the server says to that."""
        if self.ended is None and self.connection.state is ConnectionState.OPEN:
            self.ended = _LOST
        await super().close(code, reason)

    async def finish(self) -> Close:
        """Close with 1001 what is open; return how it ended, which nobody may have received yet.

        A server that closed at the same time has its say: that is how one that is full looks to a hurried loop.
        """
        with anyio.move_on_after(PATIENCE), suppress(httpx_ws.HTTPXWSException):
            if self.ended is None and self.connection.state is ConnectionState.OPEN:
                await self.send(wsproto.events.CloseConnection(CloseCode.GOING_AWAY))
            while self.ended is None:
                await self.receive()
        return self.ended or Close(CloseCode.GOING_AWAY)


@asynccontextmanager
async def _session(
    url: str, client: httpx.AsyncClient | None, tls: ssl.SSLContext | None, options: Mapping[str, Any]
) -> AsyncGenerator[ClientSession]:
    own = {**options, "headers": dict(options.get("headers") or {})}  # httpx-ws adds its own to what it is given
    async with (
        nullcontext(client) if client is not None else httpx.AsyncClient(verify=tls or True) as open_client,
        httpx_ws.aconnect_ws(url, open_client, session_class=ClientSession, **own) as session,
    ):
        yield session


class _Attempt:
    """One attempt to connect, and the session it gives, in a task of its own.

    httpx-ws keeps a task group open for each session, which must not stay open in the task of a loop that may be
    left by ``break`` (PEP 789).
    """

    def __init__(self, context: AbstractAsyncContextManager[ClientSession]) -> None:
        self.session: ClientSession | None = None
        self.error: Exception | None = None
        self.decided = anyio.Event()
        self.over = anyio.Event()
        self._left = anyio.Event()
        self._scope = anyio.CancelScope()
        self._soon = _soon()
        concurrency.spawn(self._run, context)

    async def _run(self, context: AbstractAsyncContextManager[ClientSession]) -> None:
        try:
            with self._scope:
                async with context as session:
                    self.session = session
                    self.decided.set()
                    try:
                        await self._left.wait()
                    finally:
                        # httpx-ws would do the same at its exit, and wait for a mute peer for ever.
                        with anyio.CancelScope(shield=True):
                            with anyio.move_on_after(PATIENCE):
                                await session.close()
                            await session.stream.aclose()
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
        on_event: Callable[[ClientEvent], object] | None,
        options: Mapping[str, Any],
    ) -> None:
        tls = httpx.create_ssl_context() if client is None else None  # once, since it reads all certificates
        self._open = partial(_session, url, client, tls, options)
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
            self._attempt = attempt = _Attempt(self._open())
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
            close = await attempt.session.finish()
            if attempt.session.heard:
                self._backoff.received()
        if isinstance(error, httpx_ws.WebSocketUpgradeError):
            status = error.response.status_code
            wait = self._backoff.refused(status, error.response.headers.get("retry-after", ""))
        elif attempt.session is None and error is not None and not _is_lost(error):
            raise error
        else:
            wait = self._backoff.closed(close.code, close.reason)
        attempt.leave()
        await attempt.over.wait()
        ended = Ended(self._number, close, status, attempt.error, wait)
        self._tell(ended)
        if wait is not None:
            _LOGGER.warning("%s; the next attempt is in %.1f s", ended, wait)
            return wait
        if close.code in _DONE:
            raise StopAsyncIteration
        raise GaveUp(ended) from attempt.error

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
