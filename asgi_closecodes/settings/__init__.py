"""What can be set, where it comes from, and the gates that it describes."""

from .gates import gates_of
from .model import PREFIX, Settings, SettingsError, checked_change, unknown_settings
from .types import LIMITS

__all__ = [
    "LIMITS",
    "PREFIX",
    "Settings",
    "SettingsError",
    "checked_change",
    "gates_of",
    "unknown_settings",
]
