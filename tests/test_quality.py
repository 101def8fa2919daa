"""The checks that a contributor runs."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import imports
from tests.support.markers import NEEDS

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "asgi_closecodes"

MAX_TEST_NAME_CHARACTERS = 60
IMPORT = re.compile(r"^ *(?:from .* )?import (?:\([^)]*\)|.*)", re.MULTILINE)  # trees of all files take two seconds


ROOT = TESTS.parent


@pytest.mark.slow
def test_checks_have_nothing_to_complain_about():
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci/check"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_of_a_name_that_is_gone_is_found(tmp_path):
    """Also in a function, which no type checker looks into unless it has types."""
    source = """
import tests.gone
from asgi_closecodes import gone, Guard, events
from asgi_closecodes.events import *
from .beside import also_gone, there

def function():
    from demo_app.gone import anything
    import asyncio
"""
    for name, text in {
        "asgi_closecodes/__init__.py": "Guard = 1",
        "asgi_closecodes/events.py": "",
        "tests/beside.py": "there = 1",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "tests/app.py").write_text(source)
    assert list(imports.missing(tmp_path / "tests/app.py", tmp_path)) == [
        "tests/app.py:2: there is no module tests.gone",
        "tests/app.py:3: asgi_closecodes has no gone",
        "tests/app.py:5: tests.beside has no also_gone",
        "tests/app.py:8: demo_app.gone has no anything",
    ]


def test_test_modules_are_imported_by_nobody():
    """What tests share is in a module of its own: `support`, or one beside them."""
    found = [
        f"{file.relative_to(ROOT)}: {statement[0]}"
        for file in sorted(TESTS.rglob("*.py"))
        for statement in IMPORT.finditer(file.read_text())
        if re.search(r"\b(test_\w+|conftest)\b", statement[0])
    ]
    assert found == []


def test_process_of_a_server_needs_a_marker():
    """What runs without servers, browsers and Redis starts none."""
    with pytest.raises(pytest.fail.Exception, match="add servers to NEEDS"):
        subprocess.run([sys.executable, "-c", "", "uvicorn"])


@pytest.mark.parametrize("place", NEEDS)
def test_place_that_needs_a_marker_exists(place):
    path, _, name = place.partition("::")
    files = [TESTS / path] if path.endswith(".py") else [*(TESTS / path).rglob("*.py")]
    assert any(f"def {name}" in file.read_text() for file in files)


def test_hooks_of_pre_commit_are_the_checks():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = re.search(r"^checks=\((.*)\)$", (ROOT / ".ci/check").read_text(), re.MULTILINE).group(1).split()
    assert [hook["entry"] for hook in hooks] == [f".ci/check {check}" for check in checks]


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").iterdir()), ids=lambda path: path.name)
def test_workflow_has_few_permissions_and_pinned_actions(path):
    workflow = yaml.safe_load(path.read_text())
    jobs = workflow["jobs"].values()
    actions = [step["uses"] for job in jobs for step in job.get("steps", ()) if "uses" in step]
    assert workflow["permissions"] == {}
    assert all(job["permissions"] in ({}, {"contents": "read"}, {"id-token": "write"}) for job in jobs)
    assert [action for action in actions if not re.search(r"@(release/)?v\d+$", action)] == []


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
    names = {
        f"{file.relative_to(TESTS)} {name}": len(name)
        for file in sorted(TESTS.rglob("*.py"))
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert names
    assert [name for name, length in names.items() if length > MAX_TEST_NAME_CHARACTERS] == []


@functools.cache
def _parsed(file):
    return ast.parse(file.read_text())


def _docstrings(file):
    """Yield the docstrings of a file, those of attributes too."""
    for node in ast.walk(_parsed(file)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text
