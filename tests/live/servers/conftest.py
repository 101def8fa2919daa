"""Each server is started once, bare and wrapped, and serves all tests."""

import contextlib
import time

import pytest

from tests.support.servers import SETUPS, serve


@pytest.fixture(scope="session", params=SETUPS)
def setup(request):
    return request.param


@pytest.fixture(scope="session")
def bare(setup, tmp_path_factory):
    with serve(setup, "tests.live.servers.apps:bare", tmp_path_factory.mktemp("bare")) as running:
        yield running


@pytest.fixture(scope="session")
def server(setup, tmp_path_factory):
    env = {"CLOSECODES_LOG_BURST": "none"}  # tests that fail on purpose are a storm
    with serve(setup, "tests.live.servers.wrapped:wrapped", tmp_path_factory.mktemp("wrapped"), env=env) as running:
        yield running


@pytest.fixture
def news(server, setup):
    """What the server's process has written since the test began."""
    # What it has to say of earlier tests may come late: daphne looks once a second at how its applications ended.
    before = -1
    while before != (before := len(server.log())):
        time.sleep(1.5 if setup == "daphne" else 0.2)
    return lambda: server.log()[before:]


@pytest.fixture
def holding():
    """Things that end with the test."""
    with contextlib.ExitStack() as stack:
        yield stack
