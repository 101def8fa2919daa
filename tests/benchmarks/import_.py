"""How long it takes to import the middleware, in a process of its own each time, and how much it installs."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .harness.paired import Comparison
from .harness.suite import Benchmark

MS, MIB = "ms", "MiB installed"
OURS = "from asgi_closecodes import CloseCodeMiddleware"
FRAMEWORKS = {
    "starlette": "from starlette.applications import Starlette; from starlette.routing import WebSocketRoute",
    "fastapi": "from fastapi import FastAPI",
}
PEERS = ("sentry-sdk", "pydantic-settings")
"""Another's middleware, and what most of this one's time may go to."""

BENCHMARK = Benchmark(
    "Importing, in a new process, and what is installed beside the framework",
    [
        Comparison(MS, "starlette and the middleware", "starlette", by="difference"),
        Comparison(MS, "fastapi and the middleware", "fastapi", by="difference", most=45),
        *(Comparison(MS, f"starlette and {peer}", "starlette", by="difference") for peer in PEERS),
        Comparison(MIB, "starlette and the middleware", "starlette", by="difference"),
        Comparison(MIB, "fastapi and the middleware", "fastapi", by="difference"),
        *(Comparison(MIB, f"starlette and {peer}", "starlette", by="difference") for peer in PEERS),
    ],
    pairs=9,
    short_turns=3,
)


def _bytes_of(files):
    return sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")


def _edited(distribution):
    """Yield the files of an editable install, which are not among those of its distribution."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        for package in (distribution.read_text("top_level.txt") or distribution.name.replace("-", "_")).split():
            yield from Path(unquote(urlsplit(origin["url"]).path), package).rglob("*")


def installed(*names):
    """Return the bytes of these distributions and of all that they depend on."""
    seen, waiting = {}, [*names]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # asked for on other platforms
        files = (file.locate() for file in distribution.files or ())
        seen[name] = _bytes_of(files) + _bytes_of(_edited(distribution))
        needed = [requirement for requirement in distribution.requires or () if "extra ==" not in requirement]
        waiting += [re.match(r"[\w.-]+", requirement)[0] for requirement in needed]
    return sum(seen.values())


def _importing(code, *names):
    @contextmanager
    def subject(run):
        for name in names:
            try:
                importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError as error:
                raise ModuleNotFoundError(str(error), name=name) from None
        size = installed(*names) / 2**20
        # Of the processor's time: an import waits for nothing but its turn among other processes.
        timed = f"import time; start = time.process_time(); {code}; print(time.process_time() - start)"
        # pip compiles what it installs; an editable install, as this one, may have no bytecode yet, or never keep any.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        if not run.quick:
            environment["PYTHONPYCACHEPREFIX"] = str(run.folder / "bytecode")

        def turn():
            done = subprocess.run(
                [sys.executable, "-c", timed], capture_output=True, text=True, check=True, env=environment
            )
            return {MS: float(done.stdout) * 1000, MIB: size}

        if not run.quick:
            turn()
        yield turn

    return subject


for framework, code in FRAMEWORKS.items():
    BENCHMARK.subject(framework)(_importing(code, framework))
    BENCHMARK.subject(f"{framework} and the middleware")(_importing(f"{code}; {OURS}", framework, "asgi-closecodes"))
for peer in PEERS:
    BENCHMARK.subject(f"starlette and {peer}")(
        _importing(f"{FRAMEWORKS['starlette']}; import {peer.replace('-', '_')}", "starlette", peer)
    )
