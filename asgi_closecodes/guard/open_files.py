"""Check of ``max_sessions`` against the limit of open files: each session holds a socket, which is a file."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Protocol

from asgi_closecodes import events
from asgi_closecodes.settings import Settings

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

_SPARE = 64
"""Files beside sessions and what is open at the start: refused handshakes, requests, connections to databases, logs."""


class _Guard(Protocol):
    settings: Settings

    def report_once(self, key: Hashable, event: events.Event) -> None:
        """Report the first of all events of one ``key``."""


def warn_few_files(guard: _Guard) -> None:
    """Report once if ``max_sessions`` sessions need more files than this process may open.

    A server without free files cannot accept, and so cannot refuse either: clients wait instead of seeing a close code.
    """
    sessions = guard.settings.max_sessions
    if sessions is None or resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and sessions + (already := _open_files()) + _SPARE > limit:
        guard.report_once("few_files", events.FewFiles(sessions, already, limit, sessions + already + _SPARE))


def _open_files() -> int:
    try:
        return len(os.listdir("/dev/fd"))  # noqa: PTH208 - names are enough
    except OSError:  # it is not mounted
        return 0
