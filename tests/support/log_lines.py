"""Lines of a log as events become them."""

import dataclasses
import logging

import ecs_logging
import structlog
from pythonjsonlogger.json import JsonFormatter as PlainJsonFormatter

from asgi_closecodes import Close, events
from asgi_closecodes.logs import JsonFormatter, LogObserver

from .every_event import FACTS


def logged(*happened, formatter=None, level=logging.DEBUG):
    """Log events, and return the lines, by default of our own formatter."""
    formatter = formatter or JsonFormatter()
    logger = logging.getLogger("asgi_closecodes")
    lines, before = [], logger.level
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(formatter.format(record).encode())
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


def failure(fingerprint="0123456789ab", error=None, session="0123456789ab", route="/rooms/{id}"):
    facts = dataclasses.replace(FACTS, id=session, route=route)
    return events.SessionFailed(
        facts, "ABCDEFGHJKMN", fingerprint, error or ValueError("x"), Close(1011, "internal error"), True
    )


def with_structlog(*last):
    before = [structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder(), structlog.processors.TimeStamper("iso")]
    meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=[meta, *last])


FORMATTERS = {
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


def failed():
    try:
        join(5)
    except LookupError as error:
        return events.SessionFailed(FACTS, "ABCDEFGHJKMN", "0123456789ab", error, Close(1011, "internal error"), True)


def join(room):
    raise LookupError(f"no room {room}")
