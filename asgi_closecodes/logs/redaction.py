"""What may stand in a log: nothing secret, and nothing that forges a line or drives a terminal."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import re
import unicodedata
from typing import Literal
from urllib.parse import quote, unquote

MAX_PATH = 256
"""Characters of a path in a log."""

_TOKEN = re.compile(
    r"""
    (?=.{16,})(
        [A-Fa-f0-9-]{16,}                       # hexadecimal, UUIDs
      | eyJ[\w-]+\..*                           # JSON Web Tokens
      | (?=.*\d)(?=.*[A-Za-z])[\w~+/=.-]{20,}   # base64 and its kind: long, and digits among letters
    )
    """,
    re.VERBOSE,
)
_SLUG = re.compile(r"[a-z]+([-_.][a-z0-9]{1,12})*")  # words with hyphens: a title, not a token
_KEY = os.urandom(16)

# Category Cc: control; Cf: format, bidirectional controls among them; Cs: lone surrogates; Zl, Zp: line separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def safe_path(path: str) -> str:
    """Return ``path`` percent-encoded, at most 256 characters, with what looks like a token ``REDACTED``."""
    return raw_path(masked_path(path))


def masked_path(path: str) -> str:
    """Return ``path`` with what looks like a token ``REDACTED``."""
    return "/".join("REDACTED" if _is_token(segment) else segment for segment in path.split("/"))


def raw_path(path: str) -> str:
    """Return ``path`` percent-encoded, at most 256 characters."""
    return quote(path, safe="/:@!$&'()*+,;=~-._", errors="replace")[:MAX_PATH]


def _is_token(segment: str) -> bool:
    return _TOKEN.fullmatch(segment) is not None and _SLUG.fullmatch(segment) is None


def safe_client(address: str, mode: Literal["full", "truncated", "hashed", "off"]) -> str | None:
    """Return a client's address as ``mode`` allows it to be logged.

    ``truncated`` keeps the /24 of IPv4 and the /48 of IPv6; ``hashed`` tells clients apart within one process.
    """
    if mode == "off":
        return None
    if mode == "full":
        return one_line(address)
    if mode == "hashed":
        return hashlib.blake2b(address.encode("utf-8", "replace"), digest_size=6, key=_KEY).hexdigest()
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None  # a name cannot be truncated
    return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 48), strict=False))


def one_line(text: str) -> str:
    """Return ``text`` with control and format characters, line separators and lone surrogates escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(char) if unicodedata.category(char) in _UNPRINTABLE else char for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class RedactPaths(logging.Filter):
    """Makes the paths in uvicorn's own records like ours: no query string, and no token among the segments.

    For the loggers ``uvicorn.error`` (where uvicorn writes each WebSocket) and ``uvicorn.access``.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Change ``record``, and let it pass."""
        if isinstance(record.args, tuple):
            record.args = tuple(_redacted(part) if isinstance(part, str) else part for part in record.args)
        return True


def _redacted(text: str) -> str:
    return safe_path(unquote(text.partition("?")[0])) if text.startswith("/") else one_line(text)
