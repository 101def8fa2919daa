"""Redaction: no secrets, forged lines or terminal control sequences in a log."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import unicodedata
from typing import Literal
from urllib.parse import quote, unquote

from asgi_closecodes.addresses import canonical_address, parsed_address

from .tokens import MASK, masked_path

MAX_PATH_CHARS = 256
"""Characters of a path in a log."""
_MAX_READ_CHARS = 2048
"""Characters of a path that are read."""

_KEY = os.urandom(16)

# Category Cc: control; Cf: format, bidirectional controls among them; Cs: lone surrogates; Zl, Zp: line separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def safe_path(path: str) -> str:
    """Return ``path`` percent-encoded, tokens replaced by ``REDACTED``, at most 256 characters."""
    if len(path) > _MAX_READ_CHARS:  # a token that is cut is not recognised
        path = path[:_MAX_READ_CHARS].rpartition("/")[0] + f"/{MASK}"
    return raw_path(masked_path(path))


def raw_path(path: str) -> str:
    """Return ``path`` percent-encoded, at most 256 characters."""
    return quote(path, safe="/:@!$&'()*+,;=~-._", errors="replace")[:MAX_PATH_CHARS]


def safe_client(address: str, mode: Literal["full", "truncated", "hashed", "off"]) -> str | None:
    """Return a client's address redacted by ``mode``.

    ``truncated`` keeps the /24 of IPv4 and the /48 of IPv6. ``hashed`` differs between processes.
    """
    if mode == "off":
        return None
    if mode == "full":
        return one_line(canonical_address(address))
    if mode == "hashed":
        known_as = canonical_address(address).encode("utf-8", "replace")
        return hashlib.blake2b(known_as, digest_size=6, key=_KEY).hexdigest()
    ip = parsed_address(address)
    if ip is None:
        return None  # a name cannot be truncated
    return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 48), strict=False))


def one_line(text: str) -> str:
    """Return ``text`` with control and format characters, line separators and lone surrogates escaped."""
    if text.isprintable():  # which leaves out more
        return text
    return "".join(_escaped(char) if unicodedata.category(char) in _UNPRINTABLE else char for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class RedactPaths(logging.Filter):
    """Remove query strings and tokens from the request targets in uvicorn's records.

    For the loggers ``uvicorn.error``, which has a record of each WebSocket, and ``uvicorn.access``.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact ``record`` in place, and keep it."""
        if isinstance(record.args, tuple):
            record.args = tuple(_redacted(part) if isinstance(part, str) else part for part in record.args)
        return True


def _redacted(text: str) -> str:
    """Return a request target (a path, a URL, ``*`` or an authority) without query, fragment and tokens."""
    target = text.partition("?")[0].partition("#")[0]
    if target.startswith("/"):
        return safe_path(unquote(masked_path(target)))
    is_address = not any(mark in target for mark in "/@=")  # a client's: IPv6 looks like a token
    return one_line(target if is_address else masked_path(target))
