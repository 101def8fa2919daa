"""Close codes for ASGI WebSockets: 1011 and a log record for a crash, 1013 and a retry hint for overload."""

from .codes import Close, CloseCode
from .exceptions import CloseWith, TryAgainLater
from .guard import Guard
from .middleware import CloseCodeMiddleware
from .session import Session
from .settings import Settings, SettingsError
from .status import StatusApp

__all__ = [
    "Close",
    "CloseCode",
    "CloseCodeMiddleware",
    "CloseWith",
    "Guard",
    "Session",
    "Settings",
    "SettingsError",
    "StatusApp",
    "TryAgainLater",
]
