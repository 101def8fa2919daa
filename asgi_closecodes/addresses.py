"""Canonical form of client addresses, as servers and proxies write them differently."""

from __future__ import annotations

import ipaddress
import re

_PORT = re.compile(r":(?:\d{1,5}|_[\w.-]*)?", re.ASCII)  # RFC 7239 section 6: a number, or hidden behind "_"
_MAX_CHARS = 128
"""Longest text that may be an address."""

_IPV4_EMBEDDING_PREFIXES = tuple(
    int(ipaddress.IPv6Address(network)) >> 32
    for network in (
        "::",  # IPv4-compatible (RFC 4291)
        "::ffff:0:0",  # IPv4-mapped
        "::ffff:0:0:0",  # IPv4-translated (RFC 2765)
        "64:ff9b::",  # NAT64 (RFC 6052)
    )
)
_LOCAL_NAT64 = int(ipaddress.IPv6Address("64:ff9b:1::")) >> 80  # RFC 8215
_FIRST_IPV4 = 1 << 24
"""Smaller numbers are ``::``, ``::1`` and other IPv6 addresses: 0.0.0.0/8 is not assigned."""


def canonical_address(text: str) -> str:
    """Return an IP address without port, brackets, quotes and zone; IPv4 embedded in IPv6 becomes IPv4.

    Anything else is returned unchanged.
    """
    if ":" not in text and text[-1:].isdigit() and text[:1].isdigit():
        return text  # fast path for IPv4: no allocation
    address = parsed_address(text)
    return text if address is None else str(address)


def parsed_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address as :func:`canonical_address` does; return None for anything else."""
    if len(text) > _MAX_CHARS:
        return None
    bare = text.strip(" \t\"'")
    if bare.startswith("["):
        bare, bracket, port = bare[1:].partition("]")
        if not bracket or (port and not _PORT.fullmatch(port)):
            return None
        address = _ip(bare)
    else:
        address = _ip(bare)
        if address is None:  # with a port, unless that is part of an IPv6 address
            host, colon, port = bare.rpartition(":")
            address = _ip(host) if _PORT.fullmatch(colon + port) else None
    if isinstance(address, ipaddress.IPv6Address):
        return _embedded(address) or address
    return address


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address of the host or site that is embedded in ``address``."""
    number = int(address)
    last = number & 0xFFFFFFFF
    if last >= _FIRST_IPV4 and (number >> 32 in _IPV4_EMBEDDING_PREFIXES or number >> 80 == _LOCAL_NAT64):
        return ipaddress.IPv4Address(last)
    if address.teredo is not None and int(address.teredo[0]):  # the client's address, not its Teredo server's
        return address.teredo[1]
    return address.sixtofour
