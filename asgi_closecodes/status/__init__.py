"""HTTP application with the status of a guard."""

from .app import StatusApp

__all__ = ["StatusApp"]
