"""python-socketio, which runs its handlers in their own tasks, so that their exceptions end no session.

With ``install(sio, guard)`` the exception decides how the session ends. A close that ``connect`` raises refuses the
client, since socket.io-client comes back after every close code. Clients of a full process cannot come back by HTTP.
Wrap the application: ``CloseCodeMiddleware(socketio.ASGIApp(sio), guard)``.
"""

from __future__ import annotations

import functools
import inspect
import math
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qs

from asgi_closecodes import CloseCode, CloseWith, Guard, Session, TryAgainLater
from asgi_closecodes.codes import as_text, may_be_sent
from asgi_closecodes.exceptions import deliberate_close, leaves
from asgi_closecodes.integrations import check_kind, require, session_of

require("python-socketio", "5.12")

from socketio import AsyncServer  # noqa: E402 - the message about its version first
from socketio.exceptions import ConnectionRefusedError as Refused  # noqa: E402

__all__ = ["current_session", "install"]

# Weak: the framework's background tasks inherit the context of a session, and outlive it.
_current: ContextVar[Callable[[], _Connection | None]] = ContextVar("asgi_closecodes_connection", default=lambda: None)
_installed: weakref.WeakSet[Any] = weakref.WeakSet()


def current_session() -> Session | None:
    """Return the session whose WebSocket carried the event that is being handled; None for HTTP."""
    connection = _current.get()()
    return None if connection is None else connection.session


class _Connection:
    """The WebSocket of ``session``, which is closed once its client has been told of a refusal."""

    __slots__ = ("__weakref__", "_send", "refused_by", "session")

    def __init__(self, session: Session, send: Callable[[Any], Awaitable[None]]) -> None:
        self.session = session
        self._send = send
        self.refused_by: Exception | None = None
        """The exception that has refused the client, which is not told yet."""

    async def send(self, message: Any) -> None:
        """Send ``message``; close after the one that refuses the client, which would come back after a mere close."""
        await self._send(message)
        if (error := self.refused_by) is not None and _is_refusal(message):
            self.refused_by = None
            await self.session.fail(error)


def _is_refusal(message: Mapping[str, Any]) -> bool:
    """Whether ``message`` may be Socket.IO's CONNECT_ERROR, or DISCONNECT of a server that always connects."""
    text = message.get("text")
    return text[:2] in ("44", "41") if text else bool(message.get("bytes"))  # bytes are those of msgpack


def install(sio: Any, guard: Guard) -> None:
    """Report exceptions in the handlers of ``sio``, an AsyncServer, to their sessions; idempotent.

    In ``connect`` a ``CloseWith`` or a mapped exception is a refusal of Socket.IO's, with ``code`` and ``retry_after``
    in its data. So is any other exception of a ``connect`` that came by HTTP, which has no session that could end.

    New sessions by HTTP get 503 while ``guard`` drains or is full. Otherwise a closed client would be back in the same
    process at once.

    :param guard: that of the middleware around ``sio``.
    :raises TypeError: if ``sio`` is something else, as the application around it.
    """
    check_kind(sio, AsyncServer)
    if sio in _installed:
        return
    _installed.add(sio)
    sio.handle_request = _with_session(sio.handle_request, guard)
    reporter = _Reporter(sio, guard)
    sio.on = reporter.wrapping_on(sio.on)
    sio.register_namespace = reporter.wrapping_register(sio.register_namespace)
    for handlers in sio.handlers.values():
        handlers.update({event: reporter.wrap(handler, event) for event, handler in handlers.items()})
    for namespace in sio.namespace_handlers.values():
        namespace.trigger_event = reporter.wrap(namespace.trigger_event)


class _Reporter:
    """Wraps the handlers of ``sio`` to report their exceptions."""

    def __init__(self, sio: Any, guard: Guard) -> None:
        self._log = sio.logger
        self._guard = guard

    def wrapping_on(self, on: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``sio.on``."""

        @functools.wraps(on)
        def register(event: str, handler: Callable[..., Any] | None = None, namespace: str | None = None) -> Any:
            def decorate(handler: Callable[..., Any]) -> Callable[..., Any]:
                on(event, self.wrap(handler, event), namespace)
                return handler

            return decorate if handler is None else on(event, self.wrap(handler, event), namespace)

        return register

    def wrapping_register(self, register_namespace: Callable[[Any], None]) -> Callable[[Any], None]:
        """Wrap ``sio.register_namespace``."""

        @functools.wraps(register_namespace)
        def register(namespace: Any) -> None:
            register_namespace(namespace)
            namespace.trigger_event = self.wrap(namespace.trigger_event)

        return register

    def wrap(self, handler: Callable[..., Any], event: str | None = None) -> Callable[..., Awaitable[Any]]:
        """Wrap ``handler`` to report its exceptions; without ``event``, its first argument is that."""

        @functools.wraps(handler)
        async def handle(*arguments: Any) -> Any:
            try:
                result = handler(*arguments)
                return await result if inspect.isawaitable(result) else result
            except Exception as error:
                name, connection = event or arguments[0], _current.get()()
                if _is_for_framework(error, name, arguments):
                    raise
                if name == "connect":
                    self._refuse_connect(error, connection)
                session = None if connection is None else connection.session
                if session is None or not await session.fail(error):
                    raise
                return False  # refuses a "connect"; for other events nobody uses it

        return handle

    def _refuse_connect(self, error: Exception, connection: _Connection | None) -> None:
        """Have python-socketio refuse a client that ``error`` sends away; return if closing the session is right.

        :raises socketio.exceptions.ConnectionRefusedError: without the text of ``error``.
        """
        try:
            wish = deliberate_close(leaves(error), self._guard.exceptions)
        except Exception:
            wish = None  # session.fail() reports what is wrong with the mapping
        if wish is not None:
            if connection is not None:
                connection.refused_by = error
            raise self._refusal(wish) from None
        if connection is None:
            self._log.exception("connect handler error")
            raise Refused("internal error", {"code": int(CloseCode.INTERNAL_ERROR)}) from None

    def _refusal(self, wish: CloseWith) -> Refused:
        if isinstance(wish, TryAgainLater):
            wish.repair()
            hint = self._guard.retry_after() if wish.retry_after is None else wish.retry_after
            data = {"code": self._guard.settings.try_again_code, "retry_after": round(hint, 1)}
            return Refused(wish.reason, data if wish.cause is None else {**data, "cause": wish.cause})
        if not may_be_sent(wish.code):
            return Refused("internal error", {"code": int(CloseCode.INTERNAL_ERROR)})
        return Refused(as_text(wish.reason) or "connection refused", {"code": int(wish.code)})


def _is_for_framework(error: Exception, event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether python-socketio handles ``error``: a refusal, or a call with the wrong number of arguments."""
    if event == "connect" and isinstance(error, (Refused, ConnectionRefusedError)):
        return True
    if not isinstance(error, TypeError) or event not in ("connect", "disconnect"):
        return False
    last = arguments[-1]
    if event == "connect" and not (last is None or (isinstance(last, dict) and "asgi.scope" in last)):
        return False  # other events are called only once, with the client's arguments
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") in (__name__, "socketio.async_namespace")


def _with_session(handle_request: Callable[..., Awaitable[Any]], guard: Guard) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(handle_request)
    async def handle(scope: Mapping[str, Any], receive: Any, send: Any) -> Any:
        if scope["type"] == "http" and _is_new(scope) and _is_full(guard):
            return await _refuse(guard, send)
        if (session := session_of(scope)) is None:
            _current.set(lambda: None)
            return await handle_request(scope, receive, send)
        connection = _Connection(session, send)
        _current.set(weakref.ref(connection))
        return await handle_request(scope, receive, connection.send)

    return handle


def _is_new(scope: Mapping[str, Any]) -> bool:
    query = parse_qs(scope["query_string"].decode("latin-1"))
    return "EIO" in query and "sid" not in query


def _is_full(guard: Guard) -> bool:
    snapshot = guard.snapshot()
    headroom = snapshot["headroom"]
    return snapshot["draining"] or (headroom is not None and headroom <= 0)


async def _refuse(guard: Guard, send: Any) -> None:
    # No body: python-engineio's client closes the connection before reading one, and then never reconnects.
    headers = [(b"retry-after", str(math.ceil(guard.retry_after())).encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
