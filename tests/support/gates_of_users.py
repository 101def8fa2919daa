"""Gates as users write them. mypy reads this file: the numbers of a gate are attributes, or properties."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asgi_closecodes import Session, TryAgainLater
from asgi_closecodes.gates import GateBase


class Slots(GateBase):
    """So many sessions at once; its numbers are attributes."""

    cause = "slots"
    is_overload = False

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.usage = 0

    @asynccontextmanager
    async def admit(self, _session: Session) -> AsyncIterator[None]:
        """Take a slot."""
        if self.usage >= self.limit:
            raise TryAgainLater(cause=self.cause)
        self.usage += 1
        try:
            yield
        finally:
            self.usage -= 1


class FreeSlots(GateBase):
    """Admits everybody; its numbers are properties."""

    @property
    def limit(self) -> int:
        """Never the same for long."""
        return 2

    @property
    def usage(self) -> float:
        """Half of it."""
        return self.limit / 2

    @asynccontextmanager
    async def admit(self, _session: Session) -> AsyncIterator[None]:
        """Take nothing."""
        yield
