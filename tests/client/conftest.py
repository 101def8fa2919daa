"""A server for all tests of this package."""

import itertools
import socket

import pytest

from tests.support.servers import serve


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serve("uvicorn-sansio", "tests.client.app:app", tmp_path_factory.mktemp("client"), forked=True) as running:
        yield running


@pytest.fixture
def key(_keys=itertools.count()):
    """A part of a path that no other test uses."""
    return f"key{next(_keys)}"


@pytest.fixture
def closed_port():
    """A port without a listener."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        yield taken.getsockname()[1]


@pytest.fixture
def silent_port():
    """A port with a listener that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]
