"""Python on the pages: ``python -m tests.documentation.python_blocks PAGE...`` runs it, and prints a JSON list of problems.

The blocks below one heading share their names. What such a block uses and does not define is a stand-in for the user's own
(stand_ins.py), or stands in a block further up on the page. Each page runs in a process of its own: examples set up logging, metrics, signals.
"""

import ast
import asyncio
import builtins
import contextlib
import dis
import inspect
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path

import pytest

from asgi_closecodes.testing import serve

from . import stand_ins
from .pages import Block, Page

PATIENCE_S = 30
"""Seconds that the awaiting lines of a block may take, on a busy machine."""

_URL = "ws://127.0.0.1:8000"


async def _echo(scope, receive, send):
    """Answer each message, and close after the first, so that clients on the pages come to their end."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        if message["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
            await send({"type": "websocket.close", "code": 1000})


class Runner:
    """The Python blocks of one page, run in order."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._sections: dict[tuple[str, ...], types.ModuleType] = {}
        self._names: dict[str, object] = {}
        self._loop = asyncio.Runner()

    def run(self) -> list[str]:
        """Return what is wrong."""
        with self._loop:
            return [
                problem for block in self._page.blocks if block.language == "python" for problem in self._run(block)
            ]

    def _run(self, block: Block):
        section = self._sections.get(block.headings)
        if section is None:
            name = f"page_{len(self._sections)}"
            section = self._sections[block.headings] = sys.modules[name] = types.ModuleType(name)
        names = section.__dict__
        padding = "\n" * (block.line - 1)  # so that a traceback has the page's lines
        try:
            with contextlib.ExitStack() as servers:
                source = block.source
                if _URL in source:
                    source = source.replace(_URL, servers.enter_context(serve(_echo)).url)
                flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
                code = compile(padding + source, self._page.name, "exec", flags, dont_inherit=True)
                used, defined = _global_names(code)
                for name in used.keys() - names.keys():
                    self._bring(name, block, names)
                with contextlib.redirect_stdout(io.StringIO()):
                    if code.co_flags & inspect.CO_COROUTINE:
                        self._loop.run(asyncio.wait_for(eval(code, names), PATIENCE_S))
                    else:
                        exec(code, names)
        except SyntaxError as error:
            yield f"{self._page.name}:{error.lineno}: {error.msg}"
        except (Exception, SystemExit) as error:
            lines = [
                frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self._page.name
            ]
            said = "".join(traceback.format_exception_only(error)).strip()
            yield f"{self._page.name}:{lines[-1] if lines else block.line}: {said}"
        else:
            for name, line in used.items():
                if name not in {*names, *defined} and not hasattr(builtins, name):
                    yield f"{self._page.name}:{line}: undefined name {name!r}"
            if re.search(r"^(async )?def test_", block.source, re.MULTILINE):
                yield from _tests(block)
        self._names |= names

    def _bring(self, name, block, names):
        own = [stand_ins.BELOW[heading]() for heading in block.headings if heading in stand_ins.BELOW]
        for known in (*own, stand_ins.ANYWHERE, self._names):
            if name in known:
                names[name] = known[name]
                return


def _global_names(code):
    """Return the names that are used, each with a line, and those that are defined, of all that are not local."""
    used, defined = {}, set()
    for instruction in dis.get_instructions(code):
        match instruction.opname:
            case "LOAD_NAME" | "LOAD_GLOBAL":
                used.setdefault(instruction.argval, instruction.positions.lineno)
            case "STORE_NAME" | "STORE_GLOBAL":
                defined.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _global_names(constant)
            used = inner[0] | used
            defined |= inner[1]
    return used, defined


def _tests(block):
    """Run the tests of the block by pytest, as those who copy it do."""
    plugins = ("-p", "asgi_closecodes.testing.plugin", "-p", "no:cacheprovider", "-W", "error")
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
        (Path(folder) / "test_example.py").write_text(block.source, encoding="utf-8")
        status = pytest.main(["-q", "--tb=line", "--rootdir", folder, *plugins, folder])
    if status:
        failure = re.search(r"test_example\.py:(\d+): (.*)", said.getvalue())
        yield block.problem(int(failure[1]) - 1, failure[2]) if failure else block.problem(0, said.getvalue())


def _in_a_process(page: Page) -> list[str]:
    """Run ``page`` in a fork of this process, which has no other threads yet."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            try:
                json.dump(Runner(page).run(), pipe)
            except BaseException:
                json.dump([f"{page.name}:1: {traceback.format_exc()}"], pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else [f"{page.name}:1: an example ends the process"]


def problems(*paths: Path) -> dict[str, list[str]]:
    """Run all pages; return the problems of each by its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOSECODES_")}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", __name__, *map(str, paths)],
            env={
                **environment,
                **stand_ins.ENVIRONMENT,
                "PROMETHEUS_MULTIPROC_DIR": folder,
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    json.dump({path: _in_a_process(Page.read(Path(path))) for path in sys.argv[1:]}, sys.stdout)
