"""What a session takes is no more than it was, within a fifth."""

import pytest

from tests.benchmarks.harness.counting import Counter
from tests.benchmarks.instructions import BENCHMARK, INSTRUCTIONS, TODAY
from tests.support.programs import program

ROOM = 1.2


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """One count of each subject."""
    program("valgrind")
    counter = Counter(tmp_path_factory.mktemp("counts"))
    try:
        yield {name: {INSTRUCTIONS: [counter.each(name)]} for name in BENCHMARK.subjects}
    finally:
        counter.stop()


@pytest.mark.parametrize("comparison", BENCHMARK.comparisons, ids=lambda comparison: comparison.subject)
def test_session_takes_no_more_instructions_than_it_did(samples, comparison):
    (taken,) = comparison.values(samples)
    assert taken <= ROOM * TODAY[comparison.subject]
