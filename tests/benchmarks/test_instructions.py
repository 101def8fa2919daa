"""What a session takes is no more than it was, within a fifth."""

import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks.instructions import BENCHMARK, TODAY
from tests.support.programs import program
from tests.support.servers import ROOT

pytestmark = pytest.mark.slow

ROOM = 1.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run has written that counts each subject once."""
    program("valgrind")
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--only", "instructions", "--output", str(folder)]
    # Coverage would be counted too.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    return folder


@pytest.mark.parametrize("subject", [comparison.subject for comparison in BENCHMARK.comparisons])
def test_session_takes_no_more_instructions_than_it_did(folder, subject):
    results = json.loads((folder / "results.json").read_text())["benchmarks"]["instructions"]["results"]
    [taken] = [result["median"] for result in results if result["subject"] == subject]
    assert taken <= ROOM * TODAY[subject]


def test_instructions_are_drawn(folder):
    assert (folder / "instructions.png").stat().st_size > 0
