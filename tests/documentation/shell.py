"""Shell on the pages: its syntax, and that the commands, modules, options and extras that it names exist. Nothing is run."""

import functools
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from itertools import takewhile

import click
import tree_sitter_bash
from tree_sitter import Language, Node, Parser

from tests.support.programs import program

from .pages import ROOT, Block, Page

_CLICK = {
    "asgi-closecodes": "asgi_closecodes.cli:main",
    "granian": "granian.cli:cli",
    "uvicorn": "uvicorn.main:main",
}
"""Commands whose options click tells."""
_WITH_HELP = {"daphne", "gunicorn", "hypercorn", "pip", "pytest"}
"""Commands whose --help tells their options; each is a module too."""
_OTHERS = set(
    "apt-get cat cd cp curl docker echo eval export git grep jq kill kubectl lnav ls mkdir npm pre-commit redis-cli rm sudo"
    " systemctl tail".split()
)
"""Programs that are not ours: their options are not looked at."""

HELP_S = 300
"""Seconds after which a module does not print its options but runs."""

_PARSER = Parser(Language(tree_sitter_bash.language()))
_ELLIPSIS = "…"


def broken_shell(block: Block) -> Iterator[str]:
    """Yield what is wrong in a block of shell."""
    done = subprocess.run([program("bash"), "-n"], input=block.source, capture_output=True, text=True)
    if done.returncode:
        line, why = re.search(r"line (\d+): (.*)", done.stderr).groups()
        yield block.problem(int(line) - 1, why)
        return
    for offset, words in commands(block.source):
        if why := _wrong(words):
            yield block.problem(offset, f"{' '.join(words)}: {why}")


def broken_commands(page: Page) -> Iterator[str]:
    """Yield what is wrong with the commands in inline code, which may be shortened."""
    for line, code in page.codes:
        for _, words in commands(code):
            is_ours = words[0] in {*_CLICK, *_WITH_HELP} or words[:2] == ["python", "-m"]
            if is_ours and len(words) > 1 and (why := _wrong(words)):
                yield f"{page.name}:{line}: {' '.join(words)}: {why}"


def commands(source: str) -> Iterator[tuple[int, list[str]]]:
    """Yield every command of ``source`` with its line, counted from 0: also those in pipes and substitutions."""
    queue = [_PARSER.parse(source.encode()).root_node]
    while queue:
        node = queue.pop(0)
        if node.type == "command":
            words = [_text(child) for child in node.children if child.type not in {"variable_assignment", "comment"}]
            if words := [word for word in words if word]:
                yield node.start_point[0], words
        queue += node.children


def _text(node: Node) -> str:
    if node.type == "concatenation":
        return "".join(map(_text, node.children))
    text = node.text.decode()
    return text[1:-1] if node.type in {"string", "raw_string"} else text


def _wrong(words):
    name = words[0].rpartition(".venv/bin/")[2]
    arguments = list(takewhile(lambda word: _ELLIPSIS not in word, words[1:]))
    if re.fullmatch(r"python3?(\.\d+)?", name):
        return _wrong_python(arguments)
    if name in _CLICK:
        return _wrong_by_click(name, arguments)
    if name in _WITH_HELP:
        return _wrong_module(name, arguments)
    return None if name in _OTHERS or "/" in name else f"unknown program {name!r}; is it one of _OTHERS in shell.py?"


def _wrong_python(arguments):
    match arguments:
        case ["-c", code, *_]:
            try:
                compile(code, "-c", "exec")
            except SyntaxError as error:
                return str(error)
        case ["-m", module, *rest]:
            return _wrong_module(module, rest)
    return None


def _wrong_module(module, arguments):
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        return None if module in _WITH_HELP else f"there is no module {module}"
    if found.submodule_search_locations and importlib.util.find_spec(f"{module}.__main__") is None:
        return f"{module} has no __main__"
    if module == "pip":
        wrong = _wrong_extras(arguments)
        if wrong:
            return wrong
    options = _options(arguments)
    if options:
        subcommand = arguments[:1] if module == "pip" else []
        text, failure = _help(module, *subcommand)
        if failure:
            return f"python -m {module} --help: {failure}"
        for option in options:
            if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text):
                return f"{module} has no option {option}"
    return _wrong_target(arguments)


@functools.cache
def _help(module, *arguments):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--help"],
        cwd=tempfile.gettempdir(),  # where pytest finds no conftest.py to read
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=HELP_S,
    )
    failure = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
    return done.stdout, failure


def _wrong_by_click(name, arguments):
    module, attribute = _CLICK[name].split(":")
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    command = getattr(importlib.import_module(module), attribute)
    options = _options(arguments)
    while isinstance(command, click.Group):
        words = [word for word in arguments if not word.startswith("-")]
        if not words:
            break
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            return f"{name} has no command {words[0]}"
        arguments = arguments[arguments.index(words[0]) + 1 :]
        name, command = f"{name} {words[0]}", found
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= set(command.get_help_option_names(click.Context(command)))
    for option in options:
        if option not in known:
            return f"{name} has no option {option}"
    return _wrong_target(arguments)


def _options(arguments):
    return [word.partition("=")[0] for word in arguments if re.match(r"--?[a-zA-Z]", word)]


def _wrong_target(arguments):
    """Look for applications of this repository, as ``demo_app.chat:app``."""
    for word in arguments:
        found = re.fullmatch(r"((?:demo_app|tests|asgi_closecodes)[\w.]*):\w+", word)
        if found and not _exists(found[1]):
            return f"there is no module {found[1]}"
    return None


def _exists(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _wrong_extras(arguments):
    for word in arguments:
        if extras := re.fullmatch(r"(?:asgi-closecodes|\.|.*\.whl)\[([\w,-]+)\].*", word):
            for extra in extras[1].split(","):
                if extra not in known_extras():
                    return f"there is no extra {extra}"
    return None


@functools.cache
def known_extras() -> frozenset[str]:
    """Return the extras of pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return frozenset(tomllib.load(file)["project"]["optional-dependencies"])
