"""Close codes: meaning, whether a server may send it, and advice for clients.

Sources: RFC 6455 section 7.4 and the IANA registry "WebSocket Close Code Number".
"""

from __future__ import annotations

import enum
import re
from typing import Self

from .frozen import frozen

MAX_REASON_BYTES = 123
"""A control frame has 125 bytes, two of them for the code (RFC 6455 section 5.5)."""

_OUR_PARAMETER = re.compile(r"(;?)(\s*\b(?:retry_after|cause|ref)\s*)=", re.IGNORECASE)


class CloseCode(enum.IntEnum):
    """Registered close codes, each with its meaning and advice for clients."""

    meaning: str
    advice: str

    def __new__(cls, code: int, meaning: str, advice: str) -> Self:
        """Create a member with its number and its two texts."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        member.advice = advice
        return member

    NORMAL_CLOSURE = 1000, "the purpose of the connection is fulfilled", "do not reconnect"
    GOING_AWAY = 1001, "the endpoint goes away: server shutdown, page left", "reconnect with back-off"
    PROTOCOL_ERROR = 1002, "the peer broke the protocol", "fix the client"
    UNSUPPORTED_DATA = 1003, "the endpoint does not accept this type of data", "fix the client"
    NO_STATUS_RCVD = 1005, "no code was in the close frame; never sent", "treat as 1000"
    ABNORMAL_CLOSURE = (
        1006,
        "the connection was lost without a close frame; never sent",
        "reconnect with back-off",
    )
    INVALID_FRAME_PAYLOAD_DATA = 1007, "a message that is not what its type says", "fix the client"
    POLICY_VIOLATION = 1008, "a message or a session that the endpoint's policy forbids", "do not reconnect"
    MESSAGE_TOO_BIG = 1009, "a message that is too big to process", "fix the client"
    MANDATORY_EXTENSION = (
        1010,
        "the client needs an extension that the server did not offer",
        "do not reconnect",
    )
    INTERNAL_ERROR = (
        1011,
        "the endpoint failed, as in HTTP 500",
        "reconnect with growing back-off; tell the operator",
    )
    SERVICE_RESTART = 1012, "the service restarts", "reconnect with back-off"
    TRY_AGAIN_LATER = 1013, "the server is overloaded for now, as in HTTP 503", "reconnect after the hint"
    BAD_GATEWAY = (
        1014,
        "a gateway had an invalid response from upstream, as in HTTP 502",
        "reconnect with back-off",
    )
    TLS_HANDSHAKE = 1015, "the TLS handshake failed; never sent", "check the certificate"
    UNAUTHORIZED = 3000, "the client is not authenticated, as in HTTP 401", "authenticate, then reconnect"
    FORBIDDEN = 3003, "the client is not authorized, as in HTTP 403", "do not reconnect"
    TIMEOUT = 3008, "the client took too long, as in HTTP 408", "reconnect with back-off"


_NEVER_SENT = frozenset({CloseCode.NO_STATUS_RCVD, CloseCode.ABNORMAL_CLOSURE, CloseCode.TLS_HANDSHAKE})
_REGISTERED = frozenset(map(int, CloseCode)) - _NEVER_SENT


def may_be_sent(code: object) -> bool:
    """Whether a close frame may carry ``code``: a registered one, or one from 3000 to 4999."""
    if not issubclass(type(code), int) or isinstance(code, bool):
        return False
    number = int.__int__(code)  # type: ignore[arg-type] # a subclass may override comparison
    return number in _REGISTERED or 3000 <= number <= 4999  # RFC 6455 section 7.4.2


def private_use_code(code: int) -> int:
    """Return the private-use code that replaces ``code`` on servers that cannot send it.

    1011 becomes 4011, 1013 becomes 4013: daphne sends only 1000 and 3000 to 4999.
    """
    return code + 3000 if 1000 < code < 2000 else code


def fit_reason(text: object, parameters: str = "") -> str:
    """Return ``text`` and ``parameters`` as a close reason of at most 123 bytes.

    ``text`` is truncated on a character boundary. Machines read the parameters, which stay whole
    if they fit at all. A forged parameter in ``text`` is defused: ``, retry_after:600``.
    """
    if (
        type(text) is str
        and ("=" not in text or not parameters)
        and text.isascii()
        and parameters.isascii()
        and len(text) + len(parameters) <= MAX_REASON_BYTES
    ):
        return text + parameters  # nearly always
    tail = _cut(parameters, MAX_REASON_BYTES)
    text = as_text(text)
    if parameters:
        text = _OUR_PARAMETER.sub(_as_prose, text)
    return _cut(text, MAX_REASON_BYTES - len(tail.encode())) + tail


def _as_prose(parameter: re.Match[str]) -> str:
    return f"{',' if parameter[1] else ''}{parameter[2]}:"


def _cut(text: str, size: int) -> str:
    # A lone surrogate, as undecodable bytes become in Python, has no UTF-8 form: "?" stands for it.
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


@frozen
class Close:
    """Close code and reason.

    It may hold an invalid close of a handler; :meth:`sendable` returns the one for the wire.
    """

    code: int = CloseCode.NORMAL_CLOSURE
    reason: str = ""

    def sendable(self) -> Close:
        """Return the nearest close that a server may send.

        A code that must not be sent becomes 1011 Internal Error. The reason becomes a string of
        at most 123 bytes. uvicorn, hypercorn and granian would turn such closes into 1006, 1000 or 1005.
        """
        code, reason = self.code, self.reason
        is_plain = type(code) is int and type(reason) is str and reason.isascii()
        if is_plain and code in _REGISTERED and len(reason) <= MAX_REASON_BYTES:
            return self  # nearly always
        code = int.__int__(code) if may_be_sent(code) else int(CloseCode.INTERNAL_ERROR)
        reason = fit_reason(reason)
        is_same = reason is self.reason and type(self.code) in (int, CloseCode) and code == self.code
        return self if is_same else Close(code, reason)


def as_text(value: object) -> str:
    """Return any ``value`` as a plain string; "" for None, or if that raises."""
    if value is None:
        return ""
    # Base class methods: a subclass may override them and raise.
    if issubclass(type(value), str):
        return str.__str__(value)
    try:
        return bytes.decode(value, "utf-8", "replace") if isinstance(value, bytes) else str.__str__(str(value))
    except Exception:
        return ""
