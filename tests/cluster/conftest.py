"""Each redis-server that there is runs once, and is empty for every test."""

import pytest

from .redis_server import binaries, running


@pytest.fixture(scope="session", params=binaries())
def a_server(request):
    with running(binaries()[request.param]) as server:
        yield server


@pytest.fixture
def server(a_server):
    a_server.command("FLUSHALL")
    return a_server
