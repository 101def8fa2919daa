"""Plugin for pytest: ``pytest_plugins = ["asgi_closecodes.testing.plugin"]`` in a conftest.py.

It is not an entry point: pytest would import the package in each run, used or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from . import Server, serve


@pytest.fixture
def closecodes_serve() -> Iterator[Callable[..., Server]]:
    """Serve an application on a free port until the test ends: ``closecodes_serve(app).connect("/ws")``."""
    with contextlib.ExitStack() as servers:

        def start(app: Any, *arguments: Any, **options: Any) -> Server:
            return servers.enter_context(serve(app, *arguments, **options))

        yield start
