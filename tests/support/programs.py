"""Programs that some tests need and pip does not install. Tests without them are skipped, but fail in CI."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import NoReturn

import pytest


def program(name: str, package: str | None = None) -> str:
    """Return the path of ``name``, of Debian's ``package``."""
    if (path := shutil.which(name)) is None:
        _give_up(f"{name} is missing: apt-get install {package or name}")
    return path


def module(name: str, package: str | None = None) -> str:
    """Skip the test if the module ``name`` of the extra ``test`` is not installed."""
    if importlib.util.find_spec(name) is None:
        _give_up(f"{name} is missing: pip install {package or name}")
    return name


def _give_up(why: str) -> NoReturn:
    if "NO_SKIPS" in os.environ:
        pytest.fail(why)
    pytest.skip(why)
