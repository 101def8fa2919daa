"""A guard's snapshot over HTTP, for those who may see it."""

from .app import StatusApp

__all__ = [
    "StatusApp",
]
