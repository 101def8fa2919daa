"""HTTP application with the status of a guard: JSON, a page with plots, and a drain button."""

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
"""Function that returns whether a request may see the status and drain."""

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
    """ASGI application to mount: ``app.mount("/status", StatusApp(guard, authorize=is_operator))``.

    ``GET /`` returns :meth:`Guard.snapshot` as JSON, with the ``limits`` and the ``pid`` of the process.
    ``GET /view`` is a page that plots it. ``POST /drain`` drains, then returns the snapshot; ``?window=`` and
    ``?patience=`` are in seconds. Gates are not asked: a full process answers too.

    Unauthorised requests get the same 403 for every path. So does a drain from another site's page.

    ``authorize`` should check a credential: an ``Authorization`` header, a cookie, a session. Do not check addresses:
    by DNS rebinding, a foreign page can send requests from its visitor's address with a matching ``Origin`` and
    ``Host``. Only ``allowed_hosts`` detects those.

    :param guard: the guard to show and drain.
    :param authorize: sync or async function of the request that returns True to allow it. A sync one runs in a thread.
        If it raises or returns anything but a bool, this is logged and the request is denied. ``None`` allows every
        request and logs a warning.
    :param allowed_hosts: accepted ``Host`` names without a port, as ``["localhost", "ops.example"]``; others get the
        403. ``None`` accepts any name, which is safe if ``authorize`` checks a credential.
    :raises TypeError: if ``guard`` is not a Guard, ``authorize`` is missing or not callable, or ``allowed_hosts`` is a
        single string.
    :raises ValueError: if one of ``allowed_hosts`` is not a host name.
    """

    def __init__(
        self, guard: Guard, *, authorize: Authorize | None = _NOT_GIVEN, allowed_hosts: Sequence[str] | None = None
    ) -> None:
        if not isinstance(guard, Guard):
            raise TypeError(f"guard must be a Guard, not {shown(guard)}; use the one of the middleware: {_EXAMPLE}")
        if authorize is _NOT_GIVEN or not (authorize is None or callable(authorize)):
            given = "is missing" if authorize is _NOT_GIVEN else f"must be a function, not {shown(authorize)}"
            raise TypeError(
                f"authorize {given}; give a function of the request that returns True for operators, "
                "as authorize=lambda request: request.headers.get('authorization') == 'Bearer …'; "
                "authorize=None allows every request"
            )
        self._allowed_hosts = None if allowed_hosts is None else _names(allowed_hosts)
        if authorize is None:
            pages = "" if allowed_hosts is not None else "; so can web pages by DNS rebinding: set allowed_hosts"
            _LOGGER.warning("StatusApp(authorize=None): every client can see the status and drain the process%s", pages)
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
        """Serve one HTTP request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if scope["type"] == "http" and not await self._is_authorized(Request(scope, receive)):
            await _forbidden()(scope, receive, send_with_headers)
            return
        # Without a framework's "app" the router answers by itself, and does not raise for the framework.
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
            else:  # it may block, as on a database
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
        self._guard.warn_if_unused()
        limits = self._guard.settings.limits()
        return JSONResponse({"pid": os.getpid(), "limits": limits, **self._guard.snapshot()})

    async def _drain(self, request: Request) -> Response:
        if _is_cross_site(request.headers):
            return _forbidden()
        seconds: dict[str, float | None] = {}
        for name in ("window", "patience"):
            seconds[name] = value = _seconds(given := request.query_params.get(name))
            if value is not None and not is_between(value, 0):
                return PlainTextResponse(f"{name} must be a number of seconds, 0 or more, not {shown(given)}", 400)
        done = anyio.Event()

        async def drain() -> None:
            try:
                await self._guard.drain(**seconds)
            finally:
                done.set()

        self._guard.spawn(drain)  # continues when the client has left
        await done.wait()
        return await self._snapshot(request)


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    content = resources.files("asgi_closecodes.status").joinpath("page", name).read_bytes()
    media_type = _TYPES[name.rpartition(".")[2]]

    async def answer(_request: Request) -> Response:
        return Response(content, media_type=media_type)

    return answer


def _seconds(given: str | None) -> float | None:
    try:
        return None if given is None else float(given)
    except ValueError:
        return math.nan


def _forbidden() -> Response:
    return PlainTextResponse("Forbidden", 403)


def _names(allowed_hosts: Sequence[str]) -> frozenset[str]:
    if isinstance(allowed_hosts, str):
        raise TypeError(f"allowed_hosts must be a list, as ['ops.example'], not {shown(allowed_hosts)}")
    names = {f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host for host in allowed_hosts}
    for host in names:
        if not _HOST.fullmatch(host) or _name(host) != host.lower():
            raise ValueError(
                f"allowed_hosts must contain names or addresses, as 'ops.example' or '[::1]', not {shown(host)}; "
                "omit the scheme, the port and '*'"
            )
    return frozenset(map(str.lower, names))


def _name(host: str) -> str:
    """Return the name in a ``Host`` header, without the port; empty if invalid."""
    found = _HOST.fullmatch(host)
    return found[1].lower() if found else ""


def _is_cross_site(headers: Headers) -> bool:
    """Whether a browser sent this for a page of another site.

    Other clients send neither header. DNS rebinding is not detected: ``allowed_hosts`` is for that.

    Source: the resource isolation policy of Fetch Metadata, https://www.w3.org/TR/fetch-metadata/. Browsers send no
    ``Sec-Fetch-Site`` to plain http, but ``Origin`` with every POST.
    """
    if (site := headers.get("sec-fetch-site")) is not None:
        return site != "same-origin"
    if (origin := headers.get("origin")) is None:
        return False
    host = origin.partition("://")[2]  # without the scheme: a proxy may change it; "null" has none
    return not host or host != headers.get("host")
