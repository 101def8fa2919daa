"""The return of freed memory to the operating system, which allocators keep."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable

MAX_PAUSE_S = 0.1
"""Seconds that a full collection may keep the event loop."""

_trim: threading.Thread | None = None
_seconds_a_block = 200e-9
"""As on a slow machine (130 ms for 220 000 tracked objects in 650 000 blocks), until a collection was measured here.
Blocks stand for those objects, which can only be counted by listing them."""


def collect_garbage() -> None:
    """Collect all garbage, where that is quick enough and the application has not switched the collector off."""
    global _seconds_a_block  # noqa: PLW0603 - of this process
    count = getattr(sys, "getallocatedblocks", None)  # CPython's
    if count is None or not gc.isenabled():
        return
    blocks = count()
    if blocks * _seconds_a_block >= MAX_PAUSE_S:
        return
    start = time.thread_time()
    gc.collect()
    _seconds_a_block = (time.thread_time() - start) / blocks


def trim() -> None:
    """Begin to return what malloc keeps, in a thread: one at a time in a process."""
    global _trim  # noqa: PLW0603 - of this process
    if not is_trimming() and (malloc_trim := _malloc_trim()) is not None:
        _trim = threading.Thread(target=malloc_trim, args=(0,), name="malloc_trim", daemon=True)
        _trim.start()


def is_trimming() -> bool:
    """Whether the thread is at work."""
    return _trim is not None and _trim.is_alive()


def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's function, None where malloc is somebody else's."""
    import ctypes  # noqa: PLC0415 - only where memory is limited

    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return None
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            return None  # a free-threaded build allocates by mimalloc
        libc = ctypes.CDLL(None)
        if any(hasattr(libc, name) for name in ("mallctl", "tc_malloc", "mi_malloc")):
            return None  # jemalloc, tcmalloc and mimalloc
        malloc_trim: Callable[[int], int] = libc.malloc_trim
        return malloc_trim
    except (AttributeError, OSError, ValueError):
        return None
