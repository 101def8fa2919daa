"""Logging configuration: a call, and a dictionary for ``logging.config.dictConfig``."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Literal, TextIO

from asgi_closecodes.naming import shown

from .formatters import ConsoleFormatter, JsonFormatter
from .observer import log_limits
from .redaction import RedactPaths

UVICORN = ("uvicorn.error", "uvicorn.access")
"""Loggers of uvicorn whose records contain query strings."""

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {"()": "asgi_closecodes.logs.JsonFormatter"},
        "console": {"()": "asgi_closecodes.logs.ConsoleFormatter"},
    },
    "filters": {"redact_paths": {"()": "asgi_closecodes.logs.RedactPaths"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        "uvicorn.error": {"level": "INFO", "filters": ["redact_paths"]},
        "uvicorn.access": {"level": "INFO", "filters": ["redact_paths"]},
    },
}
"""For :func:`logging.config.dictConfig`: all records of the process as JSON lines on stderr.

``uvicorn.json`` and ``uvicorn.yaml`` beside this module do the same for ``uvicorn --log-config``.
``python -m asgi_closecodes.logs`` prints their paths.
"""


class _Handler(logging.StreamHandler[TextIO]):
    """Marks the handler of an earlier call, which the next call replaces."""


def configure_logging(
    format: Literal["auto", "json", "console"] = "auto",  # noqa: A002 - the word that logging uses
    *,
    level: int | str = "INFO",
    stream: TextIO | None = None,
    logger: str = "asgi_closecodes",
) -> None:
    """Write the records of ``logger`` to ``stream``. A second call replaces the first.

    Limits that were set earlier are logged now. uvicorn's own records lose their query strings, see
    :class:`RedactPaths`.

    :param format: ``json``, ``console``, or ``auto``: the console form on a terminal, else JSON.
    :param level: the lowest level to write, by name or number.
    :param stream: ``sys.stderr`` by default.
    :param logger: the logger's name; "" is the root logger, for all records of the process.
    :raises ValueError: if the format or the level is unknown.
    """
    stream = sys.stderr if stream is None else stream
    if format not in {"auto", "json", "console"}:
        raise ValueError(f"format must be 'auto', 'json' or 'console', not {shown(format)}")
    if isinstance(level, str) and level.upper() not in logging.getLevelNamesMapping():
        raise ValueError(f"level must be one of {', '.join(logging.getLevelNamesMapping())}, not {shown(level)}")
    terminal = stream.isatty()
    handler = _Handler(stream)
    if format == "json" or (format == "auto" and not terminal):
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(ConsoleFormatter(colours=terminal and not os.environ.get("NO_COLOR")))
    target = logging.getLogger(logger)
    for earlier in [h for h in target.handlers if isinstance(h, _Handler)]:
        target.removeHandler(earlier)
    target.addHandler(handler)
    target.setLevel(level.upper() if isinstance(level, str) else level)
    if logger:
        target.propagate = False  # a configured root logger would write each record again
    for name in UVICORN:
        theirs = logging.getLogger(name)
        if not any(isinstance(kept, RedactPaths) for kept in theirs.filters):
            theirs.addFilter(RedactPaths())
    log_limits()
