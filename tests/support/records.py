import logging
from collections.abc import Iterator

import pytest


class Into(logging.Handler):
    """Appends each record to a list."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """The records of this package's loggers, in order."""
    caplog.set_level(logging.DEBUG, "asgi_closecodes")
    records: list[logging.LogRecord] = []
    handler = Into(records)
    logging.getLogger("asgi_closecodes").addHandler(handler)
    yield records
    logging.getLogger("asgi_closecodes").removeHandler(handler)
