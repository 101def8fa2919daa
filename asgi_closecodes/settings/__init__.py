"""Settings: their values, their sources, and the gates that they describe."""

from .gates import LIMITS, gates_of
from .model import PREFIX, Settings, SettingsError, checked_change, no_settings_of_its_own, unknown_settings

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
