"""Allowed ``Host`` names of the demo, against DNS rebinding.

With DNS rebinding, ``Origin`` and ``Host`` of a foreign page agree: only a list of names detects it. If the demo
listens on all addresses, the list has this machine's. ``DEMO_ALLOWED_HOSTS`` adds more, separated by commas.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterable

VARIABLE = "DEMO_ALLOWED_HOSTS"  # worker processes create the application themselves


def allow(host: str) -> None:
    """Add the names of ``host`` to :func:`allowed`, in this process and its children."""
    os.environ[VARIABLE] = ",".join([*_given(), *_names(host)])


def allowed() -> list[str]:
    """Return all names in the form of a ``Host`` header."""
    return ["localhost", "127.0.0.1", "[::1]", *_given()]


def netloc(host: str) -> str:
    """Return ``host`` in the form of a URL."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address) if address.version == 4 else f"[{address}]"


def _given() -> list[str]:
    return [name for part in os.environ.get(VARIABLE, "").split(",") if (name := part.strip())]


def _names(host: str) -> Iterable[str]:
    names = {host}
    with contextlib.suppress(ValueError):  # a name
        if ipaddress.ip_address(host).is_unspecified:
            names.add(name := socket.gethostname())
            with contextlib.suppress(OSError):
                names |= {str(address[0]) for *_, address in socket.getaddrinfo(name, None)}
    return sorted(map(netloc, names))
