"""Quart, which closes with 1000 when a handler raises.

With ``install(app)`` the exception decides how the session ends. Wrap the application too:
``app.asgi_app = CloseCodeMiddleware(app.asgi_app)``.
"""

from __future__ import annotations

from typing import Any

from asgi_closecodes.integrations import check_kind, require, session_of

require("quart", "0.20")

from quart import Quart, got_websocket_exception, websocket  # noqa: E402 - the message about its version first

__all__ = ["install"]


def install(app: Quart) -> None:
    """Report exceptions that ``app`` catches without an error handler to their sessions; idempotent.

    :raises TypeError: if ``app`` is something else, as the middleware around it.
    """
    check_kind(app, Quart)
    got_websocket_exception.connect(_fail, app)
    if _record_route not in app.before_websocket_funcs[None]:
        app.before_websocket(_record_route)


async def _record_route() -> None:
    if websocket.url_rule is not None:
        websocket.scope["path_template"] = websocket.url_rule.rule  # type: ignore[typeddict-unknown-key]  # ours


async def _fail(_app: Quart, *, exception: Exception, **_later: Any) -> None:
    if (session := session_of(websocket.scope)) is not None:
        await session.fail(exception)
