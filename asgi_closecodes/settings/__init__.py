"""Settings: their values, their sources, and the gates that they describe."""

from .gates import gates_of
from .model import PREFIX, Settings, SettingsError, checked_change, no_settings_of_its_own, unknown_settings
from .types import LIMITS

__all__ = [
    "LIMITS",
    "PREFIX",
    "Settings",
    "SettingsError",
    "checked_change",
    "gates_of",
    "no_settings_of_its_own",
    "unknown_settings",
]
