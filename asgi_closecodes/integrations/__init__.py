"""Integrations with frameworks that catch the exceptions of their handlers: ``install()`` of one of these modules.

They use public names of the framework, and nothing private of this library. README.md has a table of their effects.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from asgi_closecodes import Session

__all__ = ["check_kind", "require", "session_of", "tell_session"]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def require(distribution: str, minimum: str) -> None:
    """Check that a framework is installed.

    :raises ImportError: if it is not installed, or older than ``minimum``.
    """
    try:
        installed = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        installed = ""
    if _release(installed) < _release(minimum):
        found = f"{installed} is installed" if installed else "it is not installed"
        raise ImportError(
            f"this integration needs {distribution} {minimum} or later, but {found}: "
            f"pip install '{distribution}>={minimum}'",
            name=distribution,
        )


def _release(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]


def check_kind(given: object, wanted: type) -> None:
    """Check what ``install()`` is given, which is easily wrapped already.

    :raises TypeError: if it is no ``wanted``.
    """
    if not isinstance(given, wanted):
        raise TypeError(
            f"install() takes the {wanted.__name__} itself, not {type(given).__qualname__}: "
            "call it first, and put CloseCodeMiddleware around the application then"
        )


def session_of(scope: Mapping[str, Any]) -> Session | None:
    """Return the session of ``scope``; None for HTTP, and without the middleware."""
    session = (scope.get("extensions") or {}).get("closecodes")
    return session if isinstance(session, Session) else None


def tell_session(handler: Callable[_Parameters, Awaitable[_Result]]) -> Callable[_Parameters, Awaitable[_Result]]:
    """Wrap ``handler`` so that its exceptions end the session, and then travel on.

    The session is that of the first argument with a ``scope``. Use it for handlers and callbacks of a framework that
    catches their exceptions without a hook.
    """

    @functools.wraps(handler)
    async def handle(*arguments: _Parameters.args, **named: _Parameters.kwargs) -> _Result:
        try:
            return await handler(*arguments, **named)
        except Exception as error:
            for argument in (*arguments, *named.values()):
                if (session := session_of(getattr(argument, "scope", None) or {})) is not None:
                    await session.fail(error)
                    break
            raise

    return handle
