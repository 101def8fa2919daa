"""Programs that some tests need and that pip does not bring: without them those tests are skipped, but not in CI."""

import os
import shutil

import pytest


def program(name: str, package: str | None = None) -> str:
    """Return the path of ``name``, of Debian's ``package``."""
    if (path := shutil.which(name)) is None:
        give_up = pytest.fail if "NO_SKIPS" in os.environ else pytest.skip
        give_up(f"{name} is missing: apt-get install {package or name}")
    return path
