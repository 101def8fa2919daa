"""The checks that a contributor runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "asgi_closecodes"


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


def _docstrings(file):
    """Yield the docstrings of a file, those of attributes too."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text
