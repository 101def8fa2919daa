"""Demo application as a process, started as the README says."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import httpx

from .forked import Forked
from .peers import wait_until
from .ports import free_port
from .servers import IS_MEASURED, ROOT, START, Running, stop


class Demo(Running):
    """Running demo."""

    greeting: str
    page: str
    http: httpx.Client


def start(
    *options: str,
    command: Sequence[str] = ("-m", "demo_app"),
    stderr: int | IO[str] = subprocess.PIPE,
    **environment: Any,
) -> subprocess.Popen[str]:
    """Run ``python -m demo_app``."""
    return subprocess.Popen(
        [sys.executable, *command, *options],
        cwd=ROOT,
        env=_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def _environment(**more: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if not k.startswith("CLOSECODES_")}, **more}


def outcome(*options: str, **environment: Any) -> tuple[int, str, str]:
    """Return the exit status and the output of a demo that does not start."""
    with start(*options, **environment) as process:
        try:
            output, errors = process.communicate(timeout=20)
        finally:
            stop(process)
    return process.returncode, output, errors


def accepts(demo: Running) -> bool:
    try:
        demo.connect().close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def running_demo(
    tmp_path: Path, *options: str, port: int | None = None, forked: bool = False, **environment: Any
) -> Iterator[Demo]:
    """Run the demo until the block ends. ``http`` is an HTTP client for it; its log is in a file.

    :param forked: whether it is :mod:`.forked`; its greeting is in its log then.
    """
    port = port or free_port()
    log = tmp_path / "demo.log"
    with contextlib.ExitStack() as stack:
        process: subprocess.Popen[str] | Forked
        if forked and not IS_MEASURED:
            process = Forked(["demo_app", "--port", str(port), *options], _environment(**environment), log)
            stack.callback(stop, process)
            demo = Demo(process, ("127.0.0.1", port), log)
        else:
            process = start("--port", str(port), *options, stderr=stack.enter_context(log.open("a")), **environment)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
            stack.callback(stop, process)
            demo = Demo(process, ("127.0.0.1", port), log)
            demo.greeting = process.stdout.readline()
        demo.page = f"http://127.0.0.1:{port}"
        demo.http = stack.enter_context(httpx.Client(base_url=demo.page, timeout=10, trust_env=False, verify=False))
        assert wait_until(lambda: accepts(demo), within=START), demo.log()
        assert demo.http.get("/healthz").json() == {"status": "ok"}
        yield demo
