"""Python on the pages: ``python -m tests.documentation.python_blocks PAGE...`` runs it, and prints its problems as JSON.

Each block is a program of its own, and runs in a process of its own. A name that it does not define stands in an earlier block
below the same heading, or for something of the user's (stand_ins.py), or in a block further up on the page: that one runs first.
A block whose first line is ``# app.py`` is also the module ``app`` of those after it.
"""

import ast
import asyncio
import builtins
import contextlib
import dis
import importlib
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
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from asgi_closecodes.testing import serve

from . import stand_ins
from .pages import Block, Page

PATIENCE_S = 120
"""Seconds that the awaiting lines of a block may take, on a busy machine."""

_SERVER = "ws://127.0.0.1:8000"


async def _echo(scope, receive, send):
    """Answer the first message, then close, so that clients on the pages come to their end."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        if message["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
            await send({"type": "websocket.close", "code": 1000})


class Example:
    """A block, what it needs, and where that comes from."""

    def __init__(self, block: Block, earlier: Sequence["Example"]) -> None:
        """Read the block.

        :raises SyntaxError: with the line of the page.
        """
        self.block = block
        self.needs, self.defines = _global_names(self._compile(block.source))
        self.given = {}
        self.before = []
        self.undefined = {}
        self.files = {}
        for other in earlier:
            if file := re.match(r"# (\w+\.py)\n", other.block.source):
                self.files[file[1]] = other.block.source
        stand_in = stand_ins.of(block.headings)
        for name, line in self.needs.items():
            near, far = [], []
            for other in earlier:
                if name in other.defines:
                    (near if other.block.headings == block.headings else far).append(other)
            if near:
                self.before.append(near[-1])
            elif name in stand_in:
                self.given[name] = stand_in[name]
            elif far:
                self.before.append(far[-1])
            elif not hasattr(builtins, name):
                self.undefined[name] = line

    def _compile(self, source):
        padding = "\n" * (self.block.line - 1)  # so that a traceback has the page's lines
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return compile(padding + source, self.block.page.name, "exec", flags, dont_inherit=True)

    def imports(self) -> Iterator[str]:
        """Yield the modules that the block imports."""
        for node in ast.walk(ast.parse(self.block.source)):
            match node:
                case ast.ImportFrom(module=str(module)):
                    yield module
                case ast.Import(names=names):
                    yield from (alias.name for alias in names)

    def problems(self) -> Iterator[str]:
        """Run those before it, then this one."""
        module = sys.modules["page"] = types.ModuleType("page")
        warnings.filterwarnings("error", category=DeprecationWarning, module="page$")
        with contextlib.ExitStack() as stack:
            sys.path.insert(0, stack.enter_context(tempfile.TemporaryDirectory()))
            for name, source in self.files.items():
                Path(sys.path[0], name).write_text(source, encoding="utf-8")
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            loop = stack.enter_context(asyncio.Runner())
            chain = self._chain()
            url = _SERVER
            if any(_SERVER in example.block.source for example in chain):
                url = stack.enter_context(serve(_echo)).url
            for example in chain:
                try:
                    example._run(module.__dict__, loop, url)
                except (Exception, SystemExit) as error:
                    if example is self:
                        yield self._raised(error)
                    return
            if re.search(r"^(async )?def test_", self.block.source, re.MULTILINE):
                yield from _tests(self.block)

    def _chain(self):
        chain = []
        for example in self.before:
            chain += [one for one in example._chain() if one not in chain]
        return [*sorted(chain, key=lambda example: example.block.line), self]

    def _run(self, names, loop, url):
        names |= self.given
        code = self._compile(self.block.source.replace(_SERVER, url))
        if code.co_flags & inspect.CO_COROUTINE:
            loop.run(asyncio.wait_for(eval(code, names), PATIENCE_S))
        else:
            exec(code, names)

    def _raised(self, error):
        name = self.block.page.name
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
        why = "".join(traceback.format_exception_only(error)).strip()
        return f"{name}:{lines[-1] if lines else self.block.line}: {why}"


def _global_names(code, defined=frozenset()):
    """Return the names that ``code`` takes from elsewhere, each with a line, and those that it defines."""
    defined, needed = set(defined), {}
    for instruction in dis.get_instructions(code):
        match instruction.opname:
            case "LOAD_NAME" | "LOAD_GLOBAL" if instruction.argval not in defined:
                needed.setdefault(instruction.argval, instruction.positions.lineno)
            case "STORE_NAME" | "STORE_GLOBAL":
                defined.add(instruction.argval)
    for constant in code.co_consts:  # functions run later, when all is defined
        if isinstance(constant, types.CodeType):
            needed = _global_names(constant, defined)[0] | needed
    return needed, defined


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


def _in_a_process(example):
    """Run ``example`` in a fork of this process, which has no other threads yet."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            try:
                said = list(example.problems())
            except BaseException:
                said = [example.block.problem(0, traceback.format_exc())]
            json.dump(said, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else [example.block.problem(0, "the example ends its process")]


def _examples(page, problems):
    """Return the examples of ``page`` that can be run; append to ``problems`` why others cannot."""
    examples = []
    for block in page.blocks:
        if block.language == "python":
            try:
                examples.append(example := Example(block, examples))
            except SyntaxError as error:
                problems.append(f"{page.name}:{error.lineno}: {error.msg}")
                continue
            if page.name in stand_ins.RUN_ELSEWHERE:
                continue
            problems += [f"{page.name}:{line}: undefined name {name!r}" for name, line in example.undefined.items()]
    if page.name in stand_ins.RUN_ELSEWHERE:
        return []
    return [example for example in examples if not example.undefined]


def main(*paths: str) -> dict[str, list[str]]:
    """Run the pages; return the problems of each."""
    problems = {path: [] for path in paths}
    examples = {path: _examples(Page.read(Path(path)), problems[path]) for path in paths}
    for name in {name for some in examples.values() for example in some for name in example.imports()}:
        with contextlib.suppress(Exception):  # the example will say why
            importlib.import_module(name)  # once, and not in each process
    for path, some in examples.items():
        problems[path] += [problem for example in some for problem in _in_a_process(example)]
        problems[path].sort(key=lambda problem: int(problem.split(":")[1]))
    return problems


def problems(*paths: Path) -> dict[str, list[str]]:
    """Run the pages in another process; return the problems of each by its path."""
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
    json.dump(main(*sys.argv[1:]), sys.stdout)
