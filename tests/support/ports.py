"""Ports for the servers that tests start."""

import os
import random
import socket

# Browsers refuse to go to 10080, and Linux gives clients ports from 32768: a node of a Redis Cluster takes the one
# that is 10 000 higher, too.
_PORTS = range(10_100, 20_000)
_random = random.SystemRandom()  # hypothesis seeds the other, in each process that runs tests
_WORKERS = 3
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_left: list[int] = [*_PORTS[_worker % _WORKERS :: _WORKERS]]
_random.shuffle(_left)


def free_port() -> int:
    """Return a free port, outside of the range from which clients get theirs.

    None is returned twice: another thread or worker might take it before the server does.
    """
    while True:
        port = _left.pop()
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
