"""Steps of a reconnecting client, one frozen dataclass each."""

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
    """It is over, or failed. A second one for the same attempt follows if ``renew`` failed."""

    number: int
    close: Close
    """The server's close. It is 1006 if there was no close frame, 1001 if the loop left an open session."""
    status: int | None
    """The HTTP status, if a response refused the handshake. The close is 1006 then."""
    error: Exception | None
    """The reason why there was no connection."""
    retry_in: float | None
    """Seconds until the next attempt, without those that ``renew`` takes. None if there will be none."""
    renew_error: Exception | None = None
    """The exception that ``renew`` raised."""

    def __str__(self) -> str:
        """Describe the end, without the texts of the server and of exceptions."""
        if self.renew_error is not None:
            return f"renew failed ({type(self.renew_error).__name__}) after {self.status or int(self.close.code)}"
        if self.status is not None:
            return f"the handshake was refused with HTTP {self.status}"
        if self.error is not None:
            return f"there was no connection ({type(_root_cause(self.error)).__name__})"
        return f"the session ended with {int(self.close.code)}"


ClientEvent: TypeAlias = Connecting | Opened | Ended


class GaveUp(ConnectionError):  # noqa: N818 - named after the event, as TryAgainLater is
    """The client does not reconnect: the server forbids it or keeps failing, or ``renew`` failed."""

    def __init__(self, last: Ended) -> None:
        super().__init__(f"attempt {last.number} was the last: {last}")
        self.last = last
        """The end of the last attempt."""

    @property
    def close(self) -> Close:
        """The last close."""
        return self.last.close

    @property
    def status(self) -> int | None:
        """The HTTP status, if a response refused the last handshake."""
        return self.last.status


def _root_cause(error: Exception) -> Exception:
    """Return the most telling error: a time-out of httpx's, or the deepest, as ConnectionRefusedError is."""
    seen: set[int] = set()
    while id(error) not in seen and not type(error).__name__.endswith("Timeout"):  # its causes are httpx's internals
        seen.add(id(error))
        groups = error.exceptions if isinstance(error, ExceptionGroup) else ()
        below = error.__cause__ or error.__context__ or next(iter(groups), None)  # httpcore's is a context
        if isinstance(below, Exception):  # a cancellation is no cause
            error = below
    return error
