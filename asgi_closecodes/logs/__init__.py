"""Events as records of the standard library's ``logging``, and formatters for them."""

from .config import LOGGING, configure_logging
from .formatters import ConsoleFormatter, JsonFormatter
from .observer import LogObserver
from .redaction import RedactPaths

__all__ = ["LOGGING", "ConsoleFormatter", "JsonFormatter", "LogObserver", "RedactPaths", "configure_logging"]
