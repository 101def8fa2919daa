"""The six servers, and those of them that all tests of a file share."""

import contextlib

import pytest

from tests.support.servers import SETUPS

from .at_once import serve_all


@pytest.fixture(scope="session", params=SETUPS)
def setup(request):
    return request.param


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """All servers with the middleware, for tests that run on them at once."""
    env = {"CLOSECODES_LOG_BURST": "none"}  # tests that fail on purpose are a storm
    with serve_all("tests.live.servers.wrapped:wrapped", tmp_path_factory.mktemp("servers"), env=env) as servers:
        yield servers


@pytest.fixture
def holding():
    """Things that end with the test."""
    with contextlib.ExitStack() as stack:
        yield stack
