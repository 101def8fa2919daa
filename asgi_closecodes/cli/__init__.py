"""Command ``asgi-closecodes``; it needs the extra ``cli``."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["main"]

main: Callable[..., object]

try:
    import rich  # noqa: F401 - the commands print with it

    from .commands import commands as main
except ModuleNotFoundError as missing:
    if missing.name not in {"click", "rich"}:
        raise

    def main() -> int:
        """Print the missing packages."""
        print("asgi-closecodes needs click and rich: pip install 'asgi-closecodes[cli]'", file=sys.stderr)  # noqa: T201
        return 2
