"""Litestar, which closes with 4500 when a handler raises.

With ``install(app)`` the exception decides how the session ends. Wrap the result: ``CloseCodeMiddleware(app)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from asgi_closecodes.integrations import check_kind, require, session_of

require("litestar", "2.13")

from litestar import Litestar  # noqa: E402 - the message about its version first
from litestar.exceptions import HTTPException, WebSocketException  # noqa: E402

if TYPE_CHECKING:
    from litestar.types import Scope

__all__ = ["install"]

_ERROR_CODE = 4500


def install(app: Litestar) -> None:
    """Report exceptions that ``app`` catches to their sessions. Calling it again changes nothing.

    Closes that Litestar chooses itself stay: for a WebSocketException, and for an HTTPException below 500. That is
    reported as a ``SessionClosedWithError``.

    :raises TypeError: if ``app`` is something else, as the middleware around it.
    """
    check_kind(app, Litestar)
    if _fail not in app.after_exception:
        app.after_exception.append(_fail)


async def _fail(error: Exception, scope: Scope) -> None:
    if (session := session_of(scope)) is None or isinstance(error, WebSocketException):
        return
    if isinstance(error, HTTPException) and error.status_code < 500:
        cast("dict[str, Any]", scope)["closecodes.error_code"] = _ERROR_CODE  # Litestar's refusal, no failure
    else:
        await session.fail(error)
