"""The return of freed memory to the operating system, which allocators keep."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable

MAX_PAUSE_S = 0.1
"""Seconds for which a full garbage collection may block the event loop."""

_trim: threading.Thread | None = None
_seconds_a_block = 200e-9
"""Time of a full collection for each allocated block. The first value is that of a slow machine: 130 ms for 650 000
blocks, of which 220 000 were tracked objects. Each collection here updates it. Tracked objects would be the better
measure, but counting them means listing them."""


def collect_garbage() -> None:
    """Collect all garbage, unless that would take too long or the application has disabled the collector."""
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
    """Start a thread that returns the memory that malloc keeps; one at a time in a process."""
    global _trim  # noqa: PLW0603 - of this process
    if not is_trimming() and (malloc_trim := _malloc_trim()) is not None:
        _trim = threading.Thread(target=malloc_trim, args=(0,), name="malloc_trim", daemon=True)
        _trim.start()


def is_trimming() -> bool:
    """Whether that thread is running."""
    return _trim is not None and _trim.is_alive()


def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's ``malloc_trim``; None if another allocator is used."""
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
