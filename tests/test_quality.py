"""The checks that a contributor runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "asgi_closecodes"

MAX_TEST_NAME_CHARACTERS = 60


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_tool_has_nothing_to_complain_about(command):
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_point_down():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


READ = ("", "../demo_app")
"""Parts of the package whose prose was read by the rules; add yours."""


@pytest.mark.parametrize("part", READ)
def test_docstring_opens_with_a_verb_or_a_noun(part):
    """Docstrings that open with a question word announce their content instead of giving it."""
    path = PACKAGE / part
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    opening = re.compile(r"(what|how|where|who|whose)\b", re.IGNORECASE)
    assert files
    assert [text for file in files for text in _docstrings(file) if opening.match(text)] == []


def test_test_names_are_short():
    """A name that fits a line of a report; the sentence that it shortens is the docstring."""
    long = [
        f"{file.relative_to(TESTS)}:{node.lineno} {node.name}"
        for file in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and len(node.name) > MAX_TEST_NAME_CHARACTERS
    ]
    assert long == []


def _docstrings(file):
    """Yield the docstrings of a file, those of attributes too."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text
