"""Servers as processes, and what they spend: processor time, instructions where they are counted, memory."""

from __future__ import annotations

import functools
import importlib
import json
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.servers import Running, serve

from .apps import WRAPPED
from .suite import Run

UVICORN = "uvicorn-sansio"


@dataclass(slots=True)
class Spent:
    """What a server spent: seconds of processor time and, where they are counted, instructions."""

    seconds: float = 0.0
    instructions: float | None = None

    def each(self, count: float, took: float) -> dict[str, float]:
        """Return figures of each of ``count`` pieces of work, which took so many seconds together."""
        figures = {"server us": self.seconds * 1e6 / count, "server busy": self.seconds / took}
        if self.instructions is not None:
            figures["server instructions"] = self.instructions / count
        return figures


class Server:
    """A running server and its children."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.url: str = running.url
        self._process = psutil.Process(running.process.pid)

    def _processes(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def processor_time(self) -> float:
        """Return the seconds of processor time so far."""
        return sum(
            int((task / "schedstat").read_text().split()[0]) / 1e9
            for process in self._processes()
            for task in Path(f"/proc/{process.pid}/task").iterdir()
        )

    def memory(self) -> int:
        """Return the bytes of memory that would be free without it."""
        return sum(process.memory_full_info().uss for process in self._processes())

    def connections(self) -> int:
        """Return how many connections of clients it holds."""
        states = psutil.CONN_LISTEN, psutil.CONN_NONE
        return sum(
            connection.status not in states
            for process in self._processes()
            for connection in process.net_connections("tcp")
        )

    def connect(self) -> socket.socket:
        """Return a plain socket that is connected to it."""
        return self._running.connect()

    def ask(self, query: str = "") -> Any:
        """Return what its application answers to HTTP."""
        url = f"{self.url.replace('ws', 'http', 1)}/?{query}"
        request = urllib.request.Request(url, headers={"connection": "close"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def settle(self) -> None:
        """Wait until it has nothing left to do: others are measured on the same core.

        :raises TimeoutError: if that takes longer than half a minute.
        """
        until = time.monotonic() + 30
        while True:
            before = self.processor_time()
            time.sleep(0.05)
            if self.processor_time() - before < 0.005:
                return
            if time.monotonic() > until:
                raise TimeoutError(f"the server of {self.url} is still at work 30 s after its last turn")

    @contextmanager
    def spending(self, run: Run) -> Iterator[Spent]:
        """Take note of what is spent meanwhile."""
        spent = Spent()
        before = self.processor_time()
        if not instructions_are_counted():
            yield spent
        else:
            report = Path(tempfile.mkdtemp(dir=run.folder), "instructions")
            pids = ",".join(str(process.pid) for process in self._processes())
            perf = subprocess.Popen(["perf", "stat", "-x,", "-e", "instructions:u", "-o", str(report), "-p", pids])
            try:
                yield spent
            finally:
                perf.send_signal(signal.SIGINT)
                perf.wait()
            spent.instructions = instructions_in(report.read_text())
        spent.seconds = self.processor_time() - before


@contextmanager
def served(run: Run, app: str, *options: str, setup: str = UVICORN, forked: bool = True):
    """Run an application of :mod:`.apps` on a server; uvicorn with uvloop if not told else.

    :param forked: whether the server of a quick run may be forked, see :mod:`tests.support.forked`; it is quicker.
    :raises ModuleNotFoundError: as :func:`check_installed`.
    """
    check_installed(app, setup)
    if setup == UVICORN:
        options = ("--loop", "uvloop", *options)
    folder = Path(tempfile.mkdtemp(dir=run.folder))
    with serve(setup, f"tests.benchmarks.harness.apps:{app}", folder, *options, forked=forked and run.quick) as running:
        yield Server(running)


def check_installed(app: str, setup: str = UVICORN) -> None:
    """Do nothing.

    :raises ModuleNotFoundError: if the server or what the application is made of is not installed.
    """
    importlib.import_module("websockets" if setup == UVICORN else re.match(r"[\w.]+", setup)[0])
    WRAPPED.get(app, dict)()


@functools.cache
def instructions_are_counted() -> bool:
    """Whether ``perf stat`` is there and allowed to count; on most virtual machines it is not."""
    try:
        tried = subprocess.run(
            ["perf", "stat", "-x,", "-e", "instructions:u", "true"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return False
    return instructions_in(tried.stderr) is not None


def instructions_in(report: str) -> float | None:
    """Return the number in a report of ``perf stat -x,``, None if it was not counted."""
    for line in report.splitlines():
        value, _, event = line.split(",")[:3] if line.count(",") > 1 else ("", "", "")
        if event.startswith("instructions") and value.isdigit():
            return float(value)
    return None


def knocked(run: Run, server: Server, outcome: int) -> dict[str, float]:
    """Let clients knock for a turn, all of which have to see ``outcome``; return what it took."""
    with server.spending(run) as spent:
        seen = run.load.knock(server.url, run.seconds)
    assert seen["outcomes"].keys() == {outcome}, f"not all clients saw {outcome}: {seen['outcomes']}"
    count = seen["outcomes"][outcome]
    return {"a second": count / seen["seconds"], **spent.each(count, seen["seconds"])}
