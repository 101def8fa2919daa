"""Tools to test an application on a real server: closes that clients see, and the log records of their refs.

The pytest fixture ``closecodes_serve`` is :func:`serve`, and stops its servers at the end of the test. The rest works
without pytest.
"""

from .client import Client, ReceivedClose
from .server import Server, serve

__all__ = ["Client", "ReceivedClose", "Server", "serve"]
