"""Per-process state: live sessions, gates, settings, background work, observers."""

from .guard import Guard

__all__ = [
    "Guard",
]
