"""URLs of a Redis: checks of ``redis_url``, and the client for it."""

from __future__ import annotations

import importlib.util
import os
import random
import re
from collections.abc import Container
from typing import Any, TypeAlias
from urllib.parse import SplitResult, parse_qs, urlsplit

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
"""Options of a URL that name a file."""


def checked_url(url: str) -> str:
    """Return ``url``.

    :raises ValueError: if it cannot be used, or redis-py is not installed. The text has no password.
    """
    if importlib.util.find_spec("redis") is None:
        raise ValueError("redis_url needs the package redis: pip install 'asgi-closecodes[redis]'")
    parts = _parts_of(url)
    if parts.scheme not in SCHEMES:
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(f"redis_url should be a URL that begins with {schemes}, as redis://localhost:6379/0")
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("redis_url should name the socket, as unix:///run/redis/redis.sock")
    else:
        _check_address(parts)
    for option, paths in parse_qs(parts.query).items():
        if option in _FILES and not os.access(paths[0], os.R_OK):
            raise ValueError(f"redis_url has {option}={paths[0]}, which cannot be read")
    unusable = _unusable_option(url, parse_qs(parts.query))
    # Raised here, not where redis-py's error is caught: that may quote the URL, and would be the context.
    if unusable is not None:
        hint = ": TLS is rediss://" if unusable.startswith("ssl_") else ""
        raise ValueError(f"redis_url has an option {unusable or 'or a value'} that redis-py cannot use there{hint}")
    return url


def _unusable_option(url: str, options: Container[str]) -> str | None:
    """Return the option that redis-py cannot use: "" if it is not known which, None if it can use all."""
    try:
        client = connect(url, timeout=1)
        if (pool := getattr(client, "connection_pool", None)) is not None:
            pool.connection_class(**pool.connection_kwargs)
    except Exception as error:
        return next((name for name in re.findall(r"'(\w+)'", str(error)) if name in options), "")
    return None


def _parts_of(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        addresses = addresses_of(parts)
    except ValueError:
        addresses = []
    if not addresses:
        raise ValueError("redis_url should be a URL as redis://localhost:6379/0; its host or port cannot be read")
    return parts


def _check_address(parts: SplitResult) -> None:
    if "@" in parts.path + parts.query + parts.fragment:
        raise ValueError("redis_url cannot be read: write %2F for /, %3F for ?, %23 for # in the user and the password")
    if not all(host for host, _ in addresses_of(parts)):
        raise ValueError(f"redis_url should name a host, as {parts.scheme}://localhost:6379")
    service, db = service_and_database(parts)
    if parts.scheme.endswith("+sentinel") and not service:
        raise ValueError(
            "redis_url should name hosts and the service, as redis+sentinel://host:26379,other:26379/mymaster/0"
        )
    if not re.fullmatch("0?" if parts.scheme.endswith("+cluster") else "[0-9]*", db):
        raise ValueError("redis_url should end in the number of a database (a cluster has only 0)")


def addresses_of(parts: SplitResult) -> list[tuple[str, int]]:
    """Return hosts and ports; several only of Sentinels and of nodes.

    :raises ValueError: if they cannot be read.
    """
    _, _, kind = parts.scheme.partition("+")
    default = 26379 if kind == "sentinel" else 6379
    addresses = []
    for address in parts.netloc.rpartition("@")[2].split(",") if kind else [parts.netloc]:
        one = urlsplit(f"//{address}")
        addresses.append((one.hostname or "", default if one.port is None else one.port))
    return addresses


def service_and_database(parts: SplitResult) -> tuple[str, str]:
    """Return the name of the service that Sentinels know, and the database."""
    path = parts.path.strip("/")
    if not parts.scheme.endswith("+sentinel"):
        return "", path
    service, _, db = path.partition("/")
    return service, db


Client: TypeAlias = Any
"""A Redis or RedisCluster of redis.asyncio: they share no base class."""


def connect(url: str, timeout: float, *, to_one: bool = False) -> Client:
    """Return a client without retries and with short timeouts; it connects with its first command.

    :param to_one: whether to connect to only one node of a Redis Cluster, as to subscribe: each node has all messages.
    :raises Exception: of any class, if redis-py rejects an option of the URL.
    """
    from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel  # noqa: PLC0415 - an extra
    from redis.asyncio.cluster import ClusterNode  # noqa: PLC0415
    from redis.asyncio.connection import SSLConnection, parse_url  # noqa: PLC0415
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    ours: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "decode_responses": False}
    ours["retry"] = Retry(NoBackoff(), 0)
    if not kind:
        return Redis.from_pool(ConnectionPool(**{**parse_url(url), **ours}))
    _, db = service_and_database(parts)
    user, at, _ = parts.netloc.rpartition("@")  # redis-py knows no URLs with several hosts
    options: dict[str, Any] = {**parse_url(f"{scheme}://{user}{at}/{db}?{parts.query}"), **ours}
    addresses = addresses_of(parts)
    if kind == "cluster" and to_one:
        host, port = random.choice(addresses)  # noqa: S311 - another one next time, should it be down
        return Redis.from_pool(ConnectionPool(host=host, port=port, **options))
    options["ssl"] = options.pop("connection_class", None) is SSLConnection
    if kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in addresses]
        # A limit's keys are in one slot: the cluster need not cover all other slots.
        return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **options)
    theirs = {name: value for name, value in options.items() if name.startswith("ssl")} | ours
    for name in ("username", "password"):
        theirs[name] = options.pop(f"sentinel_{name}", None)
    sentinel = Sentinel(addresses, sentinel_kwargs=theirs, **options)  # type: ignore[no-untyped-call]
    return sentinel.master_for(service_and_database(parts)[0])
