"""The event loops of one guard: mostly one, but a TestClient has one for each socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgi_closecodes.concurrency import COUNTING, EventLoop


class EventLoops:
    """Event loops, asyncio's or trio's, that have had sessions or lifespans, until they are closed."""

    __slots__ = ("known", "lifespans")

    def __init__(self) -> None:
        self.known: set[Any] = set()
        self.lifespans: list[Any] = []
        """The event loop of each lifespan that has not ended."""

    def add(self, loop: Any) -> None:
        """Add an event loop."""
        with COUNTING:
            self.known.add(loop)

    def drop_gone(self) -> set[Any]:
        """Forget the event loops that were closed; return them."""
        gone = {loop for loop in self.known.copy() if EventLoop(loop).is_gone}
        if gone:
            with COUNTING:
                self.known -= gone
                self.lifespans = [loop for loop in self.lifespans if loop not in gone]
        return gone

    def begin_lifespan(self, loop: Any) -> bool:
        """Register a lifespan; return whether it is the only one."""
        with COUNTING:
            self.lifespans.append(loop)
            return len(self.lifespans) == 1

    def end_lifespan(self, loop: Any) -> bool:
        """Register the end of a lifespan; return whether it was the last one."""
        with COUNTING:
            if loop not in self.lifespans:  # its event loop was given up
                return False
            self.lifespans.remove(loop)
            return not self.lifespans

    def call_elsewhere(self, call: Callable[..., object], *arguments: object) -> None:
        """Schedule ``call`` in one event loop that runs in another thread, if there is any."""
        for loop in self.known.copy():
            other = EventLoop(loop)
            if not other.is_here and other.is_alive and other.call_soon(call, *arguments):
                return

    def call_all(self, call: Callable[..., object], *arguments: object) -> None:
        """Schedule ``call`` in each event loop that runs."""
        for loop in self.known.copy():
            EventLoop(loop).call_soon(call, *arguments)

    def forget(self) -> None:
        """Forget all, in a child process: they are the parent's."""
        self.known.clear()
        self.lifespans.clear()
