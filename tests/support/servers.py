"""Real servers as processes, in the six set-ups that people use, each on a free port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from .forked import Forked
from .ports import free_port

ROOT = Path(__file__).parents[2]

_HERE = "127.0.0.1"
_COMMANDS = {
    "uvicorn-sansio": "uvicorn {app} {uvicorn_bind} --ws websockets-sansio --log-level info --no-access-log",
    "uvicorn-wsproto": "uvicorn {app} {uvicorn_bind} --ws wsproto --log-level info --no-access-log",
    "hypercorn-asyncio": "hypercorn {app} --bind {hypercorn_bind} --worker-class asyncio",
    "hypercorn-trio": "hypercorn {app} --bind {hypercorn_bind} --worker-class trio",
    "granian": "granian {app} {granian_bind} --interface asgi --no-access-log",
    "daphne": "daphne {app} {daphne_bind}",
}
SETUPS = tuple(_COMMANDS)
START = 90
"""Seconds that a server may take to start on a busy machine."""

IS_MEASURED = any(name.startswith("COVERAGE_") for name in os.environ)
"""Whether coverage is, which begins with a process: none is forked then."""

Address: TypeAlias = tuple[str, int] | str
"""A (host, port) or the path of a unix socket."""


class Running:
    """Running server."""

    setup = ""
    """Its key in SETUPS, if it has one."""

    def __init__(self, process: subprocess.Popen[Any] | Forked, address: Address, log: Path) -> None:
        self.process = process
        self.address = address
        self._log = log

    @property
    def url(self) -> str:
        assert not isinstance(self.address, str)
        host, port = self.address
        return f"ws://{host}:{port}"

    def connect(self) -> socket.socket:
        """Return a plain socket that is connected to the server."""
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_STREAM)
        plain.settimeout(10)
        try:
            plain.connect(self.address)
        except OSError:
            plain.close()
            raise
        return plain

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def records(self, **wanted: object) -> list[dict[str, Any]]:
        """Return the JSON lines in the log whose keys (dots as "__") have the wanted values."""
        wanted = {key.replace("__", "."): value for key, value in wanted.items()}
        records = []
        for line in self.log().splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and all(record.get(key) == value for key, value in wanted.items()):
                    records.append(record)
        return records

    def wait_for_records(self, count: int = 1, *, within: float = 10, **wanted: object) -> list[dict[str, Any]]:
        """Return the records as soon as there are ``count`` of them; a server's output may come late."""
        deadline = time.monotonic() + within
        while len(records := self.records(**wanted)) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        return records


@contextlib.contextmanager
def serve(
    setup: str,
    app: str,
    tmp_path: Path,
    *options: str,
    env: Mapping[str, str] | None = None,
    unix: bool = False,
    forked: bool = False,
) -> Iterator[Running]:
    """Run ``app`` ("module:attribute") on the server ``setup``, with more ``options`` of its command line.

    Another server than those is given as the arguments of ``python -m``, with the same placeholders.

    :param forked: whether one process will do that has been :mod:`.forked`, where the server needs no others.
    """
    for attempt in range(3):
        try:
            running = _start(setup, app, tmp_path / f"{setup}-{attempt}.log", options, env or {}, unix, forked)
        except ChildProcessError as failed:
            if attempt == 2 or "already in use" not in str(failed).lower():
                raise
            continue  # another process took the port before the server bound it
        break
    running.setup = setup
    try:
        yield running
    finally:
        stop(running.process)


def _start(
    setup: str, app: str, log: Path, options: Sequence[str], env: Mapping[str, str], unix: bool, forked: bool
) -> Running:
    address: Address
    if unix:
        address = str(log.with_suffix(".sock"))
        binds = {"uvicorn": f"--uds {address}", "hypercorn": f"unix:{address}"}
        binds |= {"granian": f"--uds {address}", "daphne": f"-u {address}"}
    else:
        port = free_port()
        address = _HERE, port
        binds = {"uvicorn": f"--host {_HERE} --port {port}", "hypercorn": f"{_HERE}:{port}"}
        binds |= {"granian": f"--host {_HERE} --port {port}", "daphne": f"-b {_HERE} -p {port}"}
    command = _COMMANDS.get(setup, setup).format(app=app, **{f"{server}_bind": bind for server, bind in binds.items()})
    left_out = "CLOSECODES_", "PYTHONDONTWRITEBYTECODE"  # what is started often is compiled once
    environment = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    arguments = [*command.split(), *options]
    environment |= {"PYTHONUNBUFFERED": "1", **env}
    process: subprocess.Popen[bytes] | Forked
    if forked and arguments[0] != "granian" and not IS_MEASURED:  # its worker is always a process of its own
        in_one = ("--workers", "0") if arguments[0] == "hypercorn" else ()
        process = Forked([*arguments, *in_one], environment, log)
    else:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # granian and hypercorn have children, which end with the group
            )
    running = Running(process, address, log)
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            running.connect().close()
        except OSError:
            time.sleep(0.02)
        else:
            return running
    stop(process)
    raise ChildProcessError(f"{command} does not accept connections:\n{running.log()}")


def stop(process: subprocess.Popen[Any] | Forked) -> None:
    """End a server and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
