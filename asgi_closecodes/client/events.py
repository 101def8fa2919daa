"""What a reconnecting client does, one frozen dataclass a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from asgi_closecodes.codes import Close


@dataclass(frozen=True, slots=True)
class Connecting:
    """An attempt begins; the first is number 1."""

    number: int


@dataclass(frozen=True, slots=True)
class Opened:
    """The server accepted it."""

    number: int


@dataclass(frozen=True, slots=True)
class Ended:
    """It is over, or failed."""

    number: int
    close: Close
    """What the server closed with; 1006 where there was no close frame, 1001 where the loop left an open session."""
    status: int | None
    """The HTTP status, if a response refused the handshake; the close is 1006 then."""
    error: Exception | None
    """Why there was no connection."""
    retry_in: float | None
    """Seconds until the next attempt, None if there will be none."""

    def __str__(self) -> str:
        """Say it in a few words, without what the server, or an exception, says."""
        if self.status is not None:
            return f"the handshake was refused with HTTP {self.status}"
        if self.error is not None:
            return f"there was no connection ({type(_reason(self.error)).__name__})"
        return f"the session ended with {int(self.close.code)}"


ClientEvent: TypeAlias = Connecting | Opened | Ended


class GaveUp(ConnectionError):  # noqa: N818 - it says what happened, as TryAgainLater does
    """There is no point in coming back: the server forbids it, or fails again and again."""

    def __init__(self, last: Ended) -> None:
        super().__init__(f"attempt {last.number} was the last: {last}")
        self.last = last
        """How it ended."""

    @property
    def close(self) -> Close:
        """The last close."""
        return self.last.close

    @property
    def status(self) -> int | None:
        """The HTTP status, if a response refused the last handshake."""
        return self.last.status


def _reason(error: Exception) -> Exception:
    """Return the error that says most: a time-out of httpx's, or what lies deepest, as ConnectionRefusedError does."""
    seen: set[int] = set()
    while id(error) not in seen and not type(error).__name__.endswith("Timeout"):  # below it is how it was noticed
        seen.add(id(error))
        groups = error.exceptions if isinstance(error, ExceptionGroup) else ()
        below = error.__cause__ or error.__context__ or next(iter(groups), None)  # httpcore's is a context
        if isinstance(below, Exception):  # a cancellation is no cause
            error = below
    return error
