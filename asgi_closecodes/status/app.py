"""A guard's snapshot over HTTP, for those who may see it: as JSON, as a page with plots, and the button that drains."""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, TypeAlias

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from asgi_closecodes.bounds import is_between
from asgi_closecodes.events import CallbackFailed
from asgi_closecodes.guard import Guard
from asgi_closecodes.naming import shown

Authorize: TypeAlias = Callable[[Request], bool | Awaitable[bool]]
"""Says whether a request may see the status and drain."""

_LOGGER = logging.getLogger("asgi_closecodes.config")

_NOT_GIVEN: Any = object()

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_EXAMPLE = "guard = Guard(), CloseCodeMiddleware(app, guard), StatusApp(guard, authorize=...)"

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?")

_FILES = {"/view": "status.html", "/status.css": "status.css", "/status.js": "status.js"}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


class StatusApp:
    """An ASGI application to mount: ``app.mount("/status", StatusApp(guard, authorize=is_operator))``.

    ``GET /`` is :meth:`Guard.snapshot` as JSON, with the ``limits`` and the ``pid`` of the process that answered.
    ``GET /view`` is the same as a page that draws it, and follows it. ``POST /drain`` drains, and answers with the
    snapshot when that is done; ``?window=`` is in seconds. Gates are not asked, since this is no WebSocket: a full
    process answers too.

    Whoever is not authorised gets the same 403 for everything. So does a drain that another site's page asks for.

    Let ``authorize`` look at a credential: an ``Authorization`` header, a cookie, a session. An address is none, since
    a page that has its own name point to this server (DNS rebinding) asks from its visitor's address, with an
    ``Origin`` that is its ``Host``. Only ``allowed_hosts`` tells its requests from those of your own pages.

    :param guard: what it shows and drains.
    :param authorize: a plain or async function of the request that returns whether it may pass. A plain one runs in a
        thread. One that raises, or returns something else, is logged, and nobody passes. ``None`` lets everybody pass,
        which is logged as a warning.
    :param allowed_hosts: the names by which it may be asked for, without a port, as ``["localhost", "ops.example"]``;
        all others get the 403. ``None`` takes any name, which is safe where ``authorize`` looks at a credential.
    :raises TypeError: if ``guard`` is none; without ``authorize``, or if it cannot be called; or if ``allowed_hosts``
        is a single string.
    :raises ValueError: if one of ``allowed_hosts`` is no name.
    """

    def __init__(
        self, guard: Guard, *, authorize: Authorize | None = _NOT_GIVEN, allowed_hosts: Sequence[str] | None = None
    ) -> None:
        if not isinstance(guard, Guard):
            raise TypeError(f"guard={shown(guard)} is no Guard; give the one of the middleware: {_EXAMPLE}")
        if authorize is _NOT_GIVEN or not (authorize is None or callable(authorize)):
            given = "without authorize" if authorize is _NOT_GIVEN else f"with authorize={shown(authorize)}"
            raise TypeError(
                f"StatusApp {given}: give it a function of the request that says who may see the status and drain, "
                "as authorize=lambda request: request.headers.get('authorization') == 'Bearer …'; "
                "authorize=None lets everybody do so"
            )
        self._allowed_hosts = None if allowed_hosts is None else _names(allowed_hosts)
        if authorize is None:
            pages = "" if allowed_hosts is not None else "; so can web pages by DNS rebinding: give it allowed_hosts"
            _LOGGER.warning(
                "StatusApp(authorize=None): whoever can reach it sees the status, and can drain the process%s", pages
            )
        self._guard = guard
        self._authorize = authorize
        self._router = Router(
            [
                Route("/", self._snapshot),
                Route("/drain", self._drain, methods=["POST"]),
                *(Route(path, _file(name)) for path, name in _FILES.items()),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. There is nothing here for a WebSocket, and nothing to start or to stop."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if scope["type"] == "http" and not await self._is_authorized(Request(scope, receive)):
            await _forbidden()(scope, receive, send_with_headers)
            return
        # Without the "app" of a framework the router answers by itself, and does not raise for that one to answer.
        own = {key: value for key, value in scope.items() if key != "app"}
        await self._router(own, receive, send_with_headers)

    async def _is_authorized(self, request: Request) -> bool:
        if self._allowed_hosts is not None and _name(request.headers.get("host", "")) not in self._allowed_hosts:
            return False
        if self._authorize is None:
            return True
        try:
            answer: object
            if inspect.iscoroutinefunction(self._authorize):
                answer = await self._authorize(request)
            else:  # it may wait for a database
                [answer] = await run_in_threadpool(lambda authorize: [authorize(request)], self._authorize)
                if inspect.isawaitable(answer):
                    answer = await answer
            if not isinstance(answer, bool):
                raise TypeError(f"authorize returned a {type(answer).__name__}; return True or False")
        except Exception as error:
            self._guard.report(CallbackFailed("authorize", error))
            return False
        return answer

    async def _snapshot(self, _request: Request) -> Response:
        self._guard.may_be_unused()
        limits = self._guard.settings.limits()
        return JSONResponse({"pid": os.getpid(), "limits": limits, **self._guard.snapshot()})

    async def _drain(self, request: Request) -> Response:
        if _is_cross_site(request.headers):
            return _forbidden()
        given = request.query_params.get("window", str(self._guard.settings.drain_window))
        try:
            window = float(given)
        except ValueError:
            window = math.nan
        if not is_between(window, 0):
            return PlainTextResponse(f"window={shown(given)}: use a number of seconds, 0 or more", 400)
        done = anyio.Event()

        async def drain() -> None:
            try:
                await self._guard.drain(window)
            finally:
                done.set()

        self._guard.spawn(drain)  # it goes on when whoever asked for it has left
        await done.wait()
        return await self._snapshot(request)


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    content = resources.files("asgi_closecodes.status").joinpath("page", name).read_bytes()
    media_type = _TYPES[name.rpartition(".")[2]]

    async def answer(_request: Request) -> Response:
        return Response(content, media_type=media_type)

    return answer


def _forbidden() -> Response:
    return PlainTextResponse("Forbidden", 403)


def _names(allowed_hosts: Sequence[str]) -> frozenset[str]:
    if isinstance(allowed_hosts, str):
        raise TypeError(f"allowed_hosts={shown(allowed_hosts)} is one string: use a list, as ['ops.example']")
    names = {f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host for host in allowed_hosts}
    for host in names:
        if not _HOST.fullmatch(host) or _name(host) != host.lower():
            raise ValueError(
                f"allowed_hosts has {shown(host)}: use the name or the address alone, "
                "without a scheme, a port or a '*', as 'ops.example' or '[::1]'"
            )
    return frozenset(map(str.lower, names))


def _name(host: str) -> str:
    """Return what a ``Host`` header names, without the port, or nothing if it is none."""
    found = _HOST.fullmatch(host)
    return found[1].lower() if found else ""


def _is_cross_site(headers: Headers) -> bool:
    """Whether a page of another site had a browser send this; what is no browser sends neither header.

    A page that had its own name point here looks like one of ours: ``allowed_hosts`` is for that.

    Source: the resource isolation policy of Fetch Metadata, https://www.w3.org/TR/fetch-metadata/; browsers send no
    ``Sec-Fetch-Site`` to plain http, but ``Origin`` with every POST.
    """
    if (site := headers.get("sec-fetch-site")) is not None:
        return site != "same-origin"
    if (origin := headers.get("origin")) is None:
        return False
    host = origin.partition("://")[2]  # the scheme is what the browser speaks to a proxy; "null" has none
    return not host or host != headers.get("host")
