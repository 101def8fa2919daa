"""Error records of a server under test."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

from asgi_closecodes.logs import JsonFormatter

LOGGER = "asgi_closecodes.error"

RECORD_TIMEOUT_S = 5.0
"""Seconds to wait for a record: it is written after the close, which the client may see first."""


class ErrorRecords(logging.Handler):
    """Keeps the records of failed handlers, each as :class:`JsonFormatter` writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._by_ref: dict[str, dict[str, Any]] = {}
        self._written = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep ``record`` if a client may know its ref."""
        ref = getattr(record, "closecodes.error.id", None)
        if ref is None:
            return
        try:
            written = json.loads(self.format(record))
        except Exception:
            self.handleError(record)
            return
        with self._written:
            self._by_ref[ref] = written
            self._written.notify_all()

    def find(self, ref: str) -> dict[str, Any]:
        """Return the record of ``ref``; wait for it if necessary.

        :raises LookupError: if none was written.
        """
        with self._written:
            if not self._written.wait_for(lambda: ref in self._by_ref, RECORD_TIMEOUT_S):
                raise LookupError(
                    f"no record of ref {ref}: it was counted instead of written (set log_burst=None), "
                    f"or the logger {LOGGER} is off"
                )
            return self._by_ref[ref]
