"""Integrations with frameworks that catch the exceptions of their handlers: ``install()`` of one of these modules.

They know the public names of this library and of the framework alone. README.md has a table of what each does.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

from asgi_closecodes import Session

__all__ = ["require", "session_of"]


def require(distribution: str, minimum: str) -> None:
    """Check that a framework is there.

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


def session_of(scope: Mapping[str, Any]) -> Session | None:
    """Return the session that runs with ``scope``; None for HTTP, and where no middleware is around."""
    session = (scope.get("extensions") or {}).get("closecodes")
    return session if isinstance(session, Session) else None
