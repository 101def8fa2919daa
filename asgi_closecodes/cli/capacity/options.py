"""Strict parsers of command line options: an error names the option, the kind of its value and the remedy."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable

import click
from websockets.exceptions import InvalidURI
from websockets.uri import WebSocketURI, parse_uri

from asgi_closecodes.naming import shown

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s)")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OF_THE_HANDSHAKE = {
    "connection", "content-length", "sec-websocket-accept", "sec-websocket-extensions", "sec-websocket-key",
    "sec-websocket-version", "transfer-encoding", "upgrade",
}  # fmt: skip


def url(text: str) -> WebSocketURI:
    """Parse a WebSocket URL. Errors do not show its query and password.

    :raises click.BadParameter: if it is no such URL.
    """
    remedy = "give one as ws://127.0.0.1:8000/path or wss://host/path"
    try:
        parts = parse_uri(text)
    except InvalidURI as error:
        raise click.BadParameter(f"{error.msg}; {remedy}") from None
    except ValueError:  # by a port, an address or an escape
        raise click.BadParameter(f"it is no WebSocket URL; {remedy}") from None
    if not parts.host or not parts.resource_name.isprintable() or " " in parts.resource_name:
        raise click.BadParameter(f"it is no WebSocket URL; {remedy}")
    return parts


def duration_between(least: float, most: float) -> Callable[[str], float]:
    """Return a parser of durations with a unit, between ``least`` and ``most`` seconds."""

    def read(text: str) -> float:
        found = _DURATION.fullmatch(text)
        seconds = float(found[1]) / (1000 if found[2] == "ms" else 1) if found else -1.0
        if not least <= seconds <= most:
            span = f"{duration(least)} to {duration(most)}"
            raise click.BadParameter(f"{shown(text)}: use a time with its unit, as 250ms or 1.5s, from {span}")
        return seconds

    read.__name__ = "duration"
    return read


def header(text: str) -> tuple[str, str]:
    """Parse a header of the handshake into name and value. Errors do not show the value, which may be a secret.

    :raises click.BadParameter: if it cannot be sent.
    """
    name, colon, content = text.partition(":")
    content = content.strip(" \t")
    if not colon or not _NAME.fullmatch(name):
        raise click.BadParameter("it is no header; give a name and a value, as 'Cookie: session=abc'")
    if name.lower() in _OF_THE_HANDSHAKE:
        raise click.BadParameter(f"{name} belongs to the handshake itself; omit it")
    if not content.isascii() or not content.isprintable():
        raise click.BadParameter(f"the value of {name} may have printable ASCII characters only; encode it")
    return name, content


def authorities(path: str | None) -> ssl.SSLContext | None:
    """Return a TLS context that trusts only the certificates in a file.

    :raises click.BadParameter: if the file has none.
    """
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except OSError:  # an SSLError is one
        raise click.BadParameter(f"{shown(path)} has no certificates; give a file with some in PEM") from None


def duration(seconds: float) -> str:
    """Return seconds as readable text, in the form that the options accept."""
    if seconds < 1:
        return f"{seconds * 1000:.3g}ms"
    return f"{seconds:.3g}s"
