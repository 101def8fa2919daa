"""The names by which browsers may ask for the demo: a page of another site can have its name point to this machine.

DNS rebinding: ``Origin`` and ``Host`` of such a page agree, so that only a list of names tells it from our own. Where
the demo listens on all addresses these are this machine's; give more in ``DEMO_ALLOWED_HOSTS``, between commas.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterable

VARIABLE = "DEMO_ALLOWED_HOSTS"  # workers are processes of their own, which build the application themselves


def allow(host: str) -> None:
    """Have :func:`allowed` name what listens on ``host``, in this process and its children."""
    os.environ[VARIABLE] = ",".join([*_given(), *_names(host)])


def allowed() -> list[str]:
    """Return all names, as they stand in a ``Host`` header."""
    return ["localhost", "127.0.0.1", "[::1]", *_given()]


def netloc(host: str) -> str:
    """Return ``host`` as it stands in a URL."""
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
