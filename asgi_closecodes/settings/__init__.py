"""Settings: values, sources, and the gates built from them."""

from .gates import LIMITS, SHADOWABLE, gates_of
from .model import PREFIX, Settings, SettingsError, checked_change, reject_misplaced_settings, unknown_settings

__all__ = [
    "LIMITS",
    "PREFIX",
    "SHADOWABLE",
    "Settings",
    "SettingsError",
    "checked_change",
    "gates_of",
    "reject_misplaced_settings",
    "unknown_settings",
]
