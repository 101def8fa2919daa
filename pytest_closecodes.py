"""The pytest plugin of asgi-closecodes: it stands beside the package, which is imported by the first test that asks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from asgi_closecodes.testing import Server


@pytest.fixture
def closecodes_serve() -> Iterator[Callable[..., Server]]:
    """Serve an application on a free port until the test ends: ``closecodes_serve(app).connect("/ws")``."""
    from asgi_closecodes.testing import serve  # noqa: PLC0415 - a run that does not use it pays nothing

    with contextlib.ExitStack() as servers:

        def start(app: Any, *arguments: Any, **options: Any) -> Server:
            return servers.enter_context(serve(app, *arguments, **options))

        yield start
