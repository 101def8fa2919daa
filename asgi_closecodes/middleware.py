"""Middleware: for each WebSocket, ask the gates, run the handler, and turn its end into one close."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, ParamSpec

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .concurrency import inside_event_loop
from .events import Observer
from .exceptions import ExceptionMapping, TryAgainLater
from .gates import Gate
from .guard import Guard, unused
from .guard.stalls import has_session_variable
from .naming import shown
from .settings import Settings, reject_misplaced_settings

_Parameters = ParamSpec("_Parameters")


def _or_unusable(init: Callable[_Parameters, None]) -> Callable[_Parameters, None]:
    """Have the application refuse to start if its middleware cannot be built inside of an event loop.

    Starlette builds it when the server starts the application's lifespan. Servers take an exception there for "no
    lifespan", and would start serving.
    """

    @functools.wraps(init)
    def build(*arguments: _Parameters.args, **named: _Parameters.kwargs) -> None:
        try:
            init(*arguments, **named)
        except (TypeError, ValueError) as error:
            if not inside_event_loop():
                raise
            middleware: Any = arguments[0]
            middleware.app, middleware.guard = _Unusable(error), Guard(Settings.model_construct())

    return build


class CloseCodeMiddleware:
    """ASGI middleware that closes WebSockets with the right code.

    An unhandled exception becomes 1011 and one log record. A full server refuses with 1013 and a retry hint. Other
    scopes than WebSocket's are passed to ``app`` unchanged.

    :param app: the ASGI application.
    :param guard: a guard to share with the application. Without it, the other arguments build one.
    :param settings: see :class:`Settings`; by default read from the environment.
    :param gate: see :class:`Guard`, as for the rest.
    :raises TypeError: if ``guard`` is not a Guard, or is given together with arguments that build one.
    :raises SettingsError: if the settings cannot be used.
    """

    @_or_unusable
    @reject_misplaced_settings
    def __init__(
        self,
        app: ASGIApp,
        guard: Guard | None = None,
        *,
        settings: Settings | None = None,
        gate: Gate | None = None,
        exceptions: ExceptionMapping | None = None,
        observers: Iterable[Observer] = (),
        subprotocol: Callable[[Sequence[str]], str | None] | None = None,
    ) -> None:
        parts = {"settings": settings, "gate": gate, "exceptions": exceptions, "subprotocol": subprotocol}
        self.app = app
        self.guard = _guard_of(guard, observers, **parts)
        unused.discard(self.guard)

    @has_session_variable
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Serve one connection. For other scopes than WebSocket's, return what the application returns."""
        if scope["type"] == "lifespan":
            return await self._live(scope, receive, send)
        if scope["type"] != "websocket" or self.guard.serves(scope):
            return await self.app(scope, receive, send)  # a second middleware with this guard: one permit a session
        session = self.guard.session(scope, receive, send)
        try:
            if (waiting := self.guard.admit(session)) is not None:
                await waiting
            try:
                await session.run(self.app)
            except BaseException as error:
                if not await session.leave(error):
                    raise
            else:
                await session.leave()
        except TryAgainLater as error:
            await session.refuse(error)
        except (Exception, GeneratorExit):  # GeneratorExit: the coroutine is closed, maybe without an event loop
            raise
        except BaseException:  # cancelled, maybe in a group, and maybe while waiting in a gate
            await session.close_cancelled()
            raise
        return None

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Do the background work while the application runs."""
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.guard.lifespan())
            except RuntimeError as error:
                return await _Unusable(error)(scope, receive, send)

            async def send_after_cleanup(message: Message) -> None:
                if message["type"].startswith("lifespan.shutdown."):
                    await stack.aclose()  # before: uvicorn ends its event loop right after that message
                await send(message)

            return await self.app(scope, receive, send_after_cleanup)


def _guard_of(guard: Guard | None, observers: Iterable[Observer], **parts: Any) -> Guard:
    """Return ``guard``, or a new one made of the other arguments."""
    if guard is None:
        return Guard(observers=observers, **parts)
    if not isinstance(guard, Guard):
        if isinstance(guard, type):
            raise TypeError(f"guard must be a Guard, not {shown(guard)}; give one, as guard=Guard(...)")
        raise TypeError(f"guard must be a Guard, not {shown(guard)}; settings go into settings=, a gate into gate=")
    if observers != () or any(part is not None for part in parts.values()):
        raise TypeError(
            "CloseCodeMiddleware takes guard= or what a guard is made of, not both: "
            "give settings=, gate=, exceptions=, observers= and subprotocol= to Guard(...)"
        )
    return guard


class _Unusable:
    """Replacement for an application whose middleware cannot be built: it refuses to start and to serve."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(self._error)})
        raise self._error
