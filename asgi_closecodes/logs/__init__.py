"""Events as records of the standard library's ``logging``, and formatters for them."""

from .emit import LogObserver
from .formatters import ConsoleFormatter, JsonFormatter, configure_logging

__all__ = ["ConsoleFormatter", "JsonFormatter", "LogObserver", "configure_logging"]
