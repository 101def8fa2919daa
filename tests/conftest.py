"""Every test that awaits runs on asyncio and on trio, and is marked with what it needs."""

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

from tests.support.clocks import JumpingClock
from tests.support.markers import pytest_collection_modifyitems as pytest_collection_modifyitems
from tests.support.markers import pytest_runtest_protocol as pytest_runtest_protocol

# A busy machine is no failure. The same examples each time: what lands has been seen to pass.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
# Others each time: HYPOTHESIS_PROFILE=explore python -m pytest ...
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    if request.node.get_closest_marker("jumping_clock") is None:
        return request.param
    clock = JumpingClock()
    clock.replace_monotonic(request.getfixturevalue("monkeypatch"))
    return request.param, clock.options(request.param)


def pytest_collection_finish():
    """Leave the thousands of tests out of each garbage collection, which costs a third of all time otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _leave_out_what_was_imported():
    """A file that imports frameworks would make each collection of the files after it ten times as slow."""
    gc.collect()
    gc.freeze()
