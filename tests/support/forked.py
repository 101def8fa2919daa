"""Servers that are forked from a process that has imported what they need: a start takes a fifth of the processor time.

Each is a process of its own, does what ``python -m`` does with the same arguments, and imports its application itself.
Where the start, the end or the memory of a process is what is tested, it is started as people start it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_NUMBER = 8  # bytes of what a keeper says

_IMPORTED = """
    asgi_closecodes anyio._backends._asyncio anyio._backends._trio fastapi
    uvicorn.main uvicorn.lifespan.on uvicorn.protocols.http.httptools_impl uvloop
    uvicorn.protocols.websockets.websockets_sansio_impl uvicorn.protocols.websockets.wsproto_impl
    hypercorn.asyncio.run hypercorn.trio.run
    asgiref.server autobahn.twisted.websocket twisted.internet.asyncioreactor twisted.internet.endpoints twisted.web.http
""".split()
"""Modules that start no thread and no event loop, which would be shared."""


class Forked:
    """A process, with what tests use of ``subprocess.Popen``."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """Run ``python -m`` with ``arguments``; its output goes to the file ``log``."""
        assert {name for name in env if name.startswith("PYTHON")} <= {*os.environ, "PYTHONUNBUFFERED"}, "too late"
        sys.audit("subprocess.Popen", sys.executable, arguments, _ROOT, env)  # which is what it stands for
        self._arguments = arguments
        self._keeper = socket.socket(socket.AF_UNIX)
        self._keeper.connect(_address())
        self._keeper.sendall(json.dumps([arguments, str(log), env]).encode())
        self._keeper.shutdown(socket.SHUT_WR)
        self.pid = self._hear()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not connection.wait([self._keeper], timeout):
                raise subprocess.TimeoutExpired(self._arguments, timeout or 0)
            self.returncode = self._hear()
            self._keeper.close()
        return self.returncode

    def _hear(self) -> int:
        return int.from_bytes(self._keeper.recv(_NUMBER, socket.MSG_WAITALL), signed=True)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


_starting = threading.Lock()


def _address() -> str:
    with _starting:
        return _parent()


@functools.cache
def _parent() -> str:
    """Start what forks, once for this process; it ends when its standard input does."""
    address = str(Path(tempfile.mkdtemp(), "forked"))
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, address],
        cwd=_ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    atexit.register(process.communicate)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return address


def _serve(address: str) -> None:
    """Fork a keeper for each request, and the keeper a server: this process has nothing but to listen."""
    for module in _IMPORTED:
        importlib.import_module(module)
    assert threading.active_count() == 1
    assert "twisted.internet.reactor" not in sys.modules
    gc.collect()
    gc.freeze()  # so that children share its memory for long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready")
        while True:
            if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
                return
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                module, *sys.argv[1:] = _keep(client)
                runpy.run_module(module, run_name="__main__", alter_sys=True)
                return
            client.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _keep(client: socket.socket) -> list[str]:
    """Fork the server, and return its arguments there; here tell the client its number and, when it has ended, how."""
    arguments, log, env = json.load(client.makefile())
    if (pid := os.fork()) != 0:
        client.sendall(pid.to_bytes(_NUMBER))
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):  # nobody waits for it
            client.sendall(os.waitstatus_to_exitcode(status).to_bytes(_NUMBER, signed=True))
        os._exit(0)
    client.close()
    os.setsid()
    for name, number in ((os.devnull, 0), (log, 1), (log, 2)):
        opened = os.open(name, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(env)
    return list(arguments)


if __name__ == "__main__":
    _serve(sys.argv[1])
