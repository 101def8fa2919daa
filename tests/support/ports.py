"""Ports for the servers that tests start."""

import random
import socket

# Browsers refuse to go to 10080, and Linux gives clients ports from 32768: a node of a Redis Cluster takes the one
# that is 10 000 higher, too.
_PORTS = range(10_100, 20_000)
_random = random.SystemRandom()  # hypothesis seeds the other, in each process that runs tests


def free_port() -> int:
    """Return a free port, outside of the range from which clients get theirs."""
    while True:
        port = _random.choice(_PORTS)
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
