"""Where leases are kept: a Redis or Valkey behind a narrow interface, and what its errors mean."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol, TypeAlias
from urllib.parse import SplitResult, urlsplit, urlunsplit

from .lease import Reply, Request

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")

SYNC = files(__package__).joinpath("sync.lua").read_text()
COUNT = files(__package__).joinpath("count.lua").read_text()


class Store(Protocol):
    """Whatever the methods of a store raise means that it cannot be used for now."""

    async def risk(self) -> str | None:
        """Return why this store may lose what it knows, if its configuration says so."""

    def explained(self, error: Exception) -> str:
        """Return what an error of this store means and what to do about it, in one line without secrets."""

    async def close(self) -> None:
        """Close the connections; the next call opens them again."""

    def forget(self) -> None:
        """Leave the connections alone, since they belong to the parent process."""


class LeaseStore(Store, Protocol):
    """Keeps the leases of all workers."""

    async def sync(self, request: Request) -> Reply:
        """Record what a worker says, and return what it may hold."""


class CountStore(Store, Protocol):
    """Keeps the number of sessions of each key, by worker."""

    async def count(
        self, worker: str, seq: int, ttl: float, limit: int, counts: Sequence[tuple[str, int, int]]
    ) -> tuple[bool, list[int]]:
        """Record the ``counts`` of a worker: of each key its sessions, and how many more ask for a place.

        Return whether the worker was known, and how many of each key get one.
        """


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker, as the store knows it."""

    id: str
    grant: int
    used: int
    age: float
    """Seconds since its last sync."""
    expires_in: float
    """Seconds after which its places are free, if it does not sync."""


@dataclass(frozen=True, slots=True)
class State:
    """What a store knows of one cluster limit."""

    limit: int
    alloc: int
    """Places that are granted, used or not."""
    used: int
    learning: float
    """Seconds for which nobody gets more."""
    workers: tuple[Worker, ...]


Client: TypeAlias = Any
"""A Redis or RedisCluster of redis.asyncio: they share no base class."""


_INHERITED: list[Client] = []


def keys_of(name: str) -> tuple[str, str, str]:
    """Return the keys of the limit ``name``: one hash tag, so that a Redis Cluster has them in one place."""
    return f"closecodes:{{{name}}}:meta", f"closecodes:{{{name}}}:grants", f"closecodes:{{{name}}}:expiry"


class RedisStore:
    """Leases on a Redis (6.2 or later) or a Valkey.

    :param url: ``redis://``, ``rediss://`` or ``unix://`` as redis-py reads them;
        ``redis+sentinel://[user:password@]host:port,host:port/service/db`` asks Sentinels for the primary, and
        ``redis+cluster://[user:password@]host:port`` is one node of a Redis Cluster.
    :param name: the limit; processes with the same one share it.
    :param timeout: seconds that a connection or a command may take.
    :raises ValueError: if ``url`` or ``name`` cannot be used, or redis-py is not installed. The text holds no secret.
    """

    def __init__(self, url: str, name: str = "default", *, timeout: float = 1.0) -> None:
        self._url = checked_url(url)
        self._timeout = timeout
        self._keys = keys_of(checked_name(name))
        self._client: Client | None = None
        self._counting = f"closecodes:{{{name}}}:keys"
        self._sync = Script(SYNC)
        self._count = Script(COUNT)

    async def sync(self, request: Request) -> Reply:
        """Record what a worker says, and return what it may hold."""
        return Reply(*await self._sync.run(self._connected(), self._keys, request.arguments()))

    async def count(
        self, worker: str, seq: int, ttl: float, limit: int, counts: Sequence[tuple[str, int, int]]
    ) -> tuple[bool, list[int]]:
        """Record the sessions of a worker by key; return whether it was known, and how many more are admitted."""
        keys = [self._counting, *(f"{self._counting}:{digest}" for digest, _, _ in counts)]
        numbers = (number for _, open_, more in counts for number in (open_, more))
        known, *admitted = await self._count.run(
            self._connected(), keys, (worker, seq, int(ttl * 1000), limit, *numbers)
        )
        return bool(known), admitted

    async def risk(self) -> str | None:
        """Return why this Redis may lose the leases, if it says so."""
        memory = await self._connected().info("memory")
        policy = memory.get("maxmemory_policy", "") if isinstance(memory, dict) else ""
        if isinstance(policy, str) and policy.startswith("allkeys") and memory.get("maxmemory", 0):
            return (
                f"this Redis may evict the leases (maxmemory-policy {policy}): nobody gets more for a ttl then; "
                "use noeviction or a volatile policy"
            )
        return None

    async def state(self) -> State:
        """Return what is known of all workers."""
        client = self._connected()
        meta_key, grants_key, expiry_key = self._keys
        meta: Mapping[bytes, bytes] = await client.hgetall(meta_key)
        grants: Mapping[bytes, bytes] = await client.hgetall(grants_key)
        expiry: Sequence[tuple[bytes, float]] = await client.zrange(expiry_key, 0, -1, withscores=True)
        numbers = {key.decode(): float(value) for key, value in meta.items() if key != b"limit_by"}
        seconds, microseconds = await client.time()
        now = seconds * 1000 + microseconds / 1000 - numbers.get("skew", 0)
        workers = []
        for worker, ends in expiry:
            grant, used, _, since, _ = (int(field) for field in grants.get(worker, b"0:0:0:0:0").split(b":"))
            workers.append(
                Worker(worker.decode(), grant, used, max(now - since, 0) / 1000, max(float(ends) - now, 0) / 1000)
            )
        return State(
            limit=int(numbers.get("limit", 0)),
            alloc=int(numbers.get("alloc", 0)),
            used=int(numbers.get("used", 0)),
            learning=max(numbers.get("learn", 0) - now, 0) / 1000,
            workers=tuple(workers),
        )

    def _connected(self) -> Client:
        if self._client is None:
            self._client = connect(self._url, self._timeout)
        return self._client

    async def close(self) -> None:
        """Throw the client away.

        After a failure too: a connection on which a command was cancelled or timed out may hold the answer to
        another one than the next.
        """
        client, self._client = self._client, None
        if client is not None:
            await close(client)

    def explained(self, error: Exception) -> str:
        """Return what ``error`` means and what to do about it, in one line without secrets."""
        return explained(error)

    def forget(self) -> None:
        """Leave the client alone after a fork: to close it here would take it from the parent's event loop."""
        _INHERITED.append(self._client)
        self._client = None


class Script:
    """A Lua script: called by its digest, loaded where the server does not know it (any more), and only then."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._digest: str | None = None

    async def run(self, client: Client, keys: Sequence[str], arguments: Sequence[str | int]) -> list[Any]:
        """Run it, and return what it returns."""
        from redis.exceptions import NoScriptError  # noqa: PLC0415 - an extra

        if self._digest is None:
            from hashlib import sha1  # noqa: PLC0415

            self._digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        try:
            answer: Awaitable[list[Any]] = client.evalsha(self._digest, len(keys), *keys, *arguments)
            return await answer
        except NoScriptError:
            answer = client.eval(self.text, len(keys), *keys, *arguments)
            return await answer


def checked_name(name: str) -> str:
    """Return ``name``.

    :raises ValueError: if it cannot be a part of a key.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"the name {name!r} cannot be used: use 1 to 64 letters, digits, '_', '.', ':' or '-'")
    return name


def checked_url(url: str) -> str:
    """Return ``url``.

    :raises ValueError: if it cannot be used, without its password, or redis-py is not installed.
    """
    if importlib.util.find_spec("redis") is None:
        raise ValueError("redis_url needs the package redis: pip install 'asgi-closecodes[redis]'")
    try:
        parts = urlsplit(url)
        ports_are_numbers = parts.scheme in {"redis+sentinel", "unix"} or parts.port is None or parts.port > 0
    except ValueError:
        ports_are_numbers, parts = False, SplitResult("", "", "", "", "")
    if not ports_are_numbers:
        raise ValueError("redis_url should be a URL as redis://localhost:6379/0; its host or port cannot be read")
    if parts.scheme not in SCHEMES:
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(f"redis_url should be a URL that begins with {schemes}, as redis://localhost:6379/0")
    if parts.scheme == "unix" and not parts.path:
        raise ValueError("redis_url should name the socket, as unix:///run/redis/redis.sock")
    if parts.scheme != "unix" and not parts.hostname:
        raise ValueError(f"redis_url should name a host, as {parts.scheme}://localhost:6379")
    if parts.scheme == "redis+sentinel":
        _sentinel_of(parts)
    return url


def connect(url: str, timeout: float) -> Client:
    """Return a client that neither retries nor waits for long; it connects with its first command."""
    from redis.asyncio import Redis, RedisCluster, Sentinel  # noqa: PLC0415 - an extra
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    parts = urlsplit(url)
    options: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    options["retry"] = Retry(NoBackoff(), 0)
    if parts.scheme == "redis+cluster":
        plain = urlunsplit(parts._replace(scheme="redis"))
        return RedisCluster.from_url(plain, **options)
    if parts.scheme == "redis+sentinel":
        hosts, service, db = _sentinel_of(parts)
        user = {"username": parts.username, "password": parts.password}
        sentinel = Sentinel(hosts, sentinel_kwargs=options, **options, **user, db=db)  # type: ignore[no-untyped-call]
        return sentinel.master_for(service)
    return Redis.from_url(url, **options)


def _sentinel_of(parts: SplitResult) -> tuple[list[tuple[str, int]], str, int]:
    service, _, db = parts.path.strip("/").partition("/")
    hosts = []
    for address in parts.netloc.rpartition("@")[2].split(","):
        host, _, port = address.rpartition(":") if re.search(r":\d+$", address) else (address, "", "26379")
        hosts.append((host.strip("[]"), int(port)))
    if not service or (db and not db.isdigit()) or not all(host for host, _ in hosts):
        raise ValueError(
            "redis_url should name hosts and the service, as redis+sentinel://host:26379,other:26379/mymaster/0"
        )
    return hosts, service, int(db or 0)


async def close(client: Client) -> None:
    """Close all connections of ``client``, in use or not, and do not wait for long."""
    try:
        async with asyncio.timeout(1):
            await client.aclose()
            pool = getattr(client, "connection_pool", None)
            if pool is not None:
                await pool.disconnect()
            for sentinel in getattr(getattr(pool, "sentinel_manager", None), "sentinels", ()):
                await sentinel.aclose()
    except Exception:  # noqa: S110 - it is thrown away
        pass


_MEANINGS = {
    # By the first word of the server's answer.
    "NOAUTH": "it wants a password: put it into the URL, as redis://:password@host",
    "WRONGPASS": "it does not accept the user or the password of the URL",
    "NOPERM": "the user of the URL may not run EVAL and the commands of the script on closecodes:*",
    "READONLY": "it is a replica, which takes no writes: use the primary's address, or redis+sentinel://",
    "OOM": "its memory is full (maxmemory): give it more, or a Redis of its own",
    "LOADING": "it is loading its data",
    "BUSY": "it is busy with somebody's script",
    "MASTERDOWN": "its primary is down",
    "MISCONF": "it takes no writes, since it cannot write to its disk",
    "MOVED": "it is a node of a Redis Cluster: use redis+cluster://",
    "CROSSSLOT": "it is behind a proxy that does not know hash tags",
    "CLUSTERDOWN": "its cluster is down",
}


def explained(error: BaseException) -> str:
    """Return what ``error`` of a store means and what to do about it, in one line without secrets."""
    from redis import exceptions  # noqa: PLC0415 - an extra

    if isinstance(error, (TimeoutError, exceptions.TimeoutError)) or str(error).startswith("Timeout "):
        return "it does not answer in time"
    # The code of the server's answer stands somewhere in the text, or redis-py has made it a class.
    found = re.search("|".join(_MEANINGS), str(error))
    if found is not None:
        return _MEANINGS[found.group()]
    if re.search("Authentication required|already authenticated", str(error)):
        return _MEANINGS["NOAUTH"]
    for kind, code in (
        (exceptions.AuthenticationError, "WRONGPASS"),
        (exceptions.NoPermissionError, "NOPERM"),
        (exceptions.ReadOnlyError, "READONLY"),
        (exceptions.OutOfMemoryError, "OOM"),
        (exceptions.BusyLoadingError, "LOADING"),
        (exceptions.MovedError, "MOVED"),
        (exceptions.MasterDownError, "MASTERDOWN"),
        (exceptions.ClusterDownError, "CLUSTERDOWN"),
    ):
        if isinstance(error, kind) or isinstance(error.__cause__, kind):
            return _MEANINGS[code]
    if isinstance(error, (OSError, exceptions.ConnectionError)):
        return "it cannot be reached"
    return f"{type(error).__module__}.{type(error).__qualname__}"
