"""Tests of an application on a real server: the close that a client sees, and the log record behind its ref.

pytest's fixture ``closecodes_serve`` is :func:`serve` that stops its servers at the end of the test. Nothing here needs
pytest.
"""

from .client import Client, ReceivedClose
from .server import Server, serve

__all__ = ["Client", "ReceivedClose", "Server", "serve"]
