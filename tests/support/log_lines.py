"""Lines of a log as events become them."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NoReturn

import ecs_logging
import structlog
from pythonjsonlogger.json import JsonFormatter as PlainJsonFormatter

from asgi_closecodes import Close, events
from asgi_closecodes.logs import JsonFormatter, LogObserver

from .every_event import FACTS


def logged(
    *happened: events.Event, formatter: logging.Formatter | None = None, level: int = logging.DEBUG
) -> list[bytes]:
    """Log events, and return the lines, by default of our own formatter."""
    used = formatter or JsonFormatter()
    logger = logging.getLogger("asgi_closecodes")
    before = logger.level
    lines: list[bytes] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(used.format(record).encode())

    handler = Lines()
    logger.addHandler(handler)
    logger.setLevel(level)
    observer = LogObserver()
    try:
        for event in happened:
            observer(event)
        observer.flush_summaries(now=True)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    return lines


def failure(
    fingerprint: str = "0123456789ab",
    error: Exception | None = None,
    session: str = "0123456789ab",
    route: str = "/rooms/{id}",
) -> events.SessionFailed:
    facts = dataclasses.replace(FACTS, id=session, route=route)
    return events.SessionFailed(
        facts, "ABCDEFGHJKMN", fingerprint, error or ValueError("x"), Close(1011, "internal error"), True
    )


def with_structlog(*last: Any) -> logging.Formatter:
    before: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper("iso"),
    ]
    meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=[meta, *last])


FORMATTERS: dict[str, logging.Formatter] = {
    "ours": JsonFormatter(),
    "python-json-logger": PlainJsonFormatter(),
    "python-json-logger with a format": PlainJsonFormatter("{asctime}{levelname}{name}{message}", style="{"),
    "python-json-logger with a number": PlainJsonFormatter(["created", "levelno", "message"]),
    "python-json-logger with an array": PlainJsonFormatter(exc_info_as_array=True),
    "structlog": with_structlog(structlog.processors.format_exc_info, structlog.processors.JSONRenderer()),
    "structlog with dictionaries": with_structlog(
        structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()
    ),
    "ecs-logging": ecs_logging.StdlibFormatter(),
}


def failed() -> events.SessionFailed:
    try:
        join(5)
    except LookupError as error:
        return events.SessionFailed(FACTS, "ABCDEFGHJKMN", "0123456789ab", error, Close(1011, "internal error"), True)


def join(room: int) -> NoReturn:
    raise LookupError(f"no room {room}")
