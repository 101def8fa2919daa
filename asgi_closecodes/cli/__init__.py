"""The command ``asgi-closecodes``; it needs the extra ``cli``, and says so where it is missing."""

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
        """Say what is missing."""
        print("asgi-closecodes: click and rich are missing; pip install 'asgi-closecodes[cli]'", file=sys.stderr)  # noqa: T201
        return 2
