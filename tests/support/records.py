import logging

import pytest


@pytest.fixture
def records(caplog):
    """The records of this package's loggers, in order."""
    caplog.set_level(logging.DEBUG, "asgi_closecodes")
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("asgi_closecodes").addHandler(handler)
    yield records
    logging.getLogger("asgi_closecodes").removeHandler(handler)
