"""A redis-server runs once, and is empty for every test; the script is tried on each one that there is."""

import contextlib

import pytest

from tests.support.programs import program
from tests.support.redis import binaries, running

from .processes import Processes


@pytest.fixture(scope="session")
def servers():
    """Servers by their names, each started when it is asked for."""
    with contextlib.ExitStack() as stack:
        started = {}

        def get(name):
            if name not in started:
                started[name] = stack.enter_context(running(binaries()[name]))
            return started[name]

        yield get


@pytest.fixture
def server(servers):
    server = servers(next(iter(binaries())))
    server.command("FLUSHALL")
    return server


@pytest.fixture(params=binaries())
def each_server(request, servers):
    server = servers(request.param)
    server.command("FLUSHALL")
    return server


@pytest.fixture(params=binaries())
def binary(request):
    return binaries()[request.param] or program(request.param)


@pytest.fixture
async def processes():
    async with Processes() as processes:
        yield processes
