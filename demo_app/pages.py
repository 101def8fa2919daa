"""Files of the pages; a page may load nothing else."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from asgi_closecodes import client

STATIC = Path(__file__).with_name("static")
SCRIPT = Path(client.__file__).with_name("reconnecting-websocket.js")

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Static(StaticFiles):
    """Serve the demo's files, and the script of the library."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Return the file at ``path``."""
        return (str(SCRIPT), SCRIPT.stat()) if path == SCRIPT.name else super().lookup_path(path)

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """Return the response for a file."""
        response = super().file_response(*arguments, **options)
        response.headers.update(_HEADERS)
        return response


def page(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that serves ``file``."""

    async def endpoint(_request: Request) -> Response:
        return FileResponse(file, headers=_HEADERS)

    return endpoint
