"""Test client that keeps what it receives."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from .records import ErrorRecords

TIMEOUT_S = 10.0
"""Seconds that a client waits for the server: enough on a busy machine. Passing tests do not wait that long."""

ABNORMAL_CLOSURE = 1006

_PARAMETER = re.compile(r"; *(\w+)=([^;]*)")


@dataclass(frozen=True, slots=True)
class ReceivedClose:
    """End of a session as its client saw it."""

    code: int | None
    """Close code; 1006 without a close frame, None if HTTP answered the handshake."""
    reason: str
    """Close reason, or the body of the HTTP response."""
    status: int | None = None
    """HTTP status that answered the handshake instead."""
    messages: tuple[str | bytes, ...] = ()
    """Messages before the close that were not received."""
    _records: ErrorRecords = field(default_factory=ErrorRecords, repr=False, compare=False)
    _retry_after: str | None = field(default=None, repr=False)

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of the reason, as ``{"cause": "full", "retry_after": "2.3"}``."""
        return {name: value.strip() for name, value in _PARAMETER.findall(self.reason)}

    @property
    def ref(self) -> str | None:
        """The id of the error's log record."""
        return self.parameters.get("ref")

    @property
    def cause(self) -> str | None:
        """The cause of a refusal."""
        return self.parameters.get("cause")

    @property
    def hint(self) -> float | None:
        """Seconds after which the client should reconnect."""
        try:
            return float(self.parameters.get("retry_after", self._retry_after or ""))
        except ValueError:
            return None

    @property
    def record(self) -> dict[str, Any]:
        """The log record of the ref, with the keys that :class:`JsonFormatter` writes.

        :raises LookupError: if the reason has no ref, or no record was written.
        """
        if self.ref is None:
            raise LookupError(f"{self} has no ref")
        return self._records.find(self.ref)

    def __str__(self) -> str:
        """Describe it in one line."""
        end = f"HTTP {self.status}" if self.code is None else f"close {self.code}"
        return f"{end} {self.reason!r}"


class Client:
    """One WebSocket connection; made by :meth:`Server.connect`. Leaving its ``with`` block closes it."""

    def __init__(self, path: str, connection: ClientConnection | InvalidStatus, records: ErrorRecords) -> None:
        self._path = path
        self._connection = connection
        self._records = records

    def __enter__(self) -> Self:
        """Return this client."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the session."""
        self.close()

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose."""
        return None if isinstance(self._connection, InvalidStatus) else self._connection.subprotocol

    def send(self, message: str | bytes) -> None:
        """Send a message. After the end of the session it is dropped: the close says why."""
        if not isinstance(self._connection, InvalidStatus):
            with contextlib.suppress(ConnectionClosed):
                self._connection.send(message)

    def receive(self, timeout: float = TIMEOUT_S) -> str | bytes:
        """Return the next message.

        :raises ConnectionError: if the session has ended instead.
        :raises TimeoutError: if nothing came within ``timeout`` seconds.
        """
        if isinstance(self._connection, InvalidStatus):
            raise self._ended()
        try:
            return self._connection.recv(timeout)
        except ConnectionClosed:
            raise self._ended() from None
        except TimeoutError:
            raise TimeoutError(f"no message from {self._path} within {timeout:g} s") from None

    def wait_closed(self, timeout: float = TIMEOUT_S) -> ReceivedClose:
        """Wait for the server to end the session, and return how it did.

        :raises TimeoutError: if it is open after ``timeout`` seconds without a message.
        """
        if isinstance(self._connection, InvalidStatus):
            return _denial(self._connection, self._records)
        messages: list[str | bytes] = []
        try:
            while True:
                messages.append(self._connection.recv(timeout))
        except ConnectionClosed as closed:
            code, reason = (ABNORMAL_CLOSURE, "") if closed.rcvd is None else (closed.rcvd.code, closed.rcvd.reason)
            return ReceivedClose(code, reason, None, tuple(messages), self._records)
        except TimeoutError:
            raise TimeoutError(
                f"the session of {self._path} is still open after {timeout:g} s; received: {messages!r}"
            ) from None

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the session."""
        if not isinstance(self._connection, InvalidStatus):
            self._connection.close(code, reason)

    def _ended(self) -> ConnectionError:
        close = self.wait_closed()
        error = ConnectionError(f"{self._path} answered {close} instead of a message")
        if close.ref is not None:
            try:
                error.add_note(str(close.record.get("exception.stacktrace", "")))
            except LookupError as missing:
                error.add_note(str(missing))
        return error


def _denial(refused: InvalidStatus, records: ErrorRecords) -> ReceivedClose:
    response = refused.response
    body = bytes(response.body or b"").decode(errors="replace")
    status = HTTPStatus(response.status_code)
    return ReceivedClose(None, body, int(status), (), records, response.headers.get("Retry-After"))
