"""Lines of a log as events become them."""

import dataclasses
import logging

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
        observer.sum_up(now=True)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    return lines


def failure(fingerprint="0123456789ab", error=None, session="0123456789ab", route="/rooms/{id}"):
    facts = dataclasses.replace(FACTS, id=session, route=route)
    return events.SessionFailed(
        facts, "ABCDEFGHJKMN", fingerprint, error or ValueError("x"), Close(1011, "internal error"), True
    )
