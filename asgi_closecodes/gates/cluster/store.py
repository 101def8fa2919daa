"""Where leases are kept: a Redis or Valkey behind a narrow interface, and what its errors mean."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol, TypeAlias
from urllib.parse import SplitResult, parse_qs, urlsplit

from .lease import Reply, Request
from .task import is_cancelled

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
"""Options of a URL that name a file."""

PULSE = 5.0
"""Seconds without a call after which it is asked whether the connection still lives on which one would come."""

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


@dataclass(frozen=True, slots=True)
class KeyCount:
    """What a worker says of one key."""

    digest: str
    """What stands for the key."""
    open: int
    """Its sessions in this worker."""
    more: int
    """Sessions that ask for a place."""
    numbers: Sequence[int] = ()
    """Those that the store has given the open ones, from the oldest on; the last ones may have none yet."""


@dataclass(frozen=True, slots=True)
class CountRequest:
    """What a worker says: a state, never a change of one."""

    worker: str
    seq: int
    ttl: float
    """Seconds after which it is dead, if it says nothing more."""
    limit: int
    """Sessions of one key; -1 is no limit."""
    counts: Sequence[KeyCount] = ()
    replaces: bool = False
    """Whether who asks for a place gets that of the oldest session, where there is none."""
    heard: Sequence[str] = ()
    """Which of its sessions it knows to be replaced, as the store has named them."""

    def arguments(self) -> Sequence[str | int]:
        """Return the arguments of the script."""
        arguments: list[str | int] = [self.worker, self.seq, int(self.ttl * 1000), self.limit, int(self.replaces)]
        arguments += [len(self.heard), *self.heard]
        for count in self.counts:
            arguments += [count.open, count.more, ",".join(map(str, count.numbers))]
        return arguments


@dataclass(frozen=True, slots=True)
class CountReply:
    """What the store answers."""

    known: bool
    """Whether it knew this worker."""
    replaced: Sequence[str]
    """Sessions of this worker that have lost their place and are not known to have heard of it: digest:number."""
    admitted: Sequence[tuple[int, int]]
    """Of each key how many get a place, the last of those who ask, and the first number for those without one, or 0."""


class CountStore(Store, Protocol):
    """Keeps the number of sessions of each key, by worker."""

    async def count(self, request: CountRequest) -> CountReply:
        """Record what a worker says, and return who is admitted."""

    async def listen(self, worker: str, call: Callable[[], object]) -> None:
        """Call ``call`` when this begins, and whenever a session of ``worker`` is replaced: it should count.

        It ends with an error. A call may be lost, as long as the next count brings what it was for.
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

    :param url: ``redis://``, ``rediss://`` (TLS) or ``unix://`` as redis-py reads them;
        ``redis+sentinel://[user:password@]host:port,host:port/service/db`` asks Sentinels for the primary, with
        ``?sentinel_username=`` and ``sentinel_password=`` where they want one themselves, and
        ``redis+cluster://[user:password@]host:port,host:port`` names nodes of a Redis Cluster. Both speak TLS as
        ``rediss+…``. Options of redis-py follow as a query: ``?ssl_ca_certs=/path/ca.pem``.
    :param name: the limit; processes with the same one share it.
    :param timeout: seconds that a connection or a command may take.
    :raises ValueError: if ``url`` or ``name`` cannot be used, or redis-py is not installed. The text holds no secret.
    """

    def __init__(self, url: str, name: str = "default", *, timeout: float = 1.0) -> None:
        self._url = checked_url(url)
        self._timeout = timeout
        self._keys = keys_of(checked_name(name))
        self._client: Client | None = None
        self._has_answered = False
        self._listening: Client | None = None
        self._counting = f"closecodes:{{{name}}}:keys"
        self._sync = Script(SYNC)
        self._count = Script(COUNT)

    async def sync(self, request: Request) -> Reply:
        """Record what a worker says, and return what it may hold."""
        reply = Reply(*await self._sync.run(self._connected(), self._keys, request.arguments()))
        self._has_answered = True
        return reply

    async def count(self, request: CountRequest) -> CountReply:
        """Record the sessions of a worker by key, and return who is admitted."""
        keys = [f"{self._counting}:{part}" for part in ("said", *(count.digest for count in request.counts))]
        answer = await self._count.run(self._connected(), [self._counting, *keys], request.arguments())
        self._has_answered = True
        known, replaced, *pairs = answer
        admitted = [*zip(pairs[::2], pairs[1::2], strict=True)]
        return CountReply(bool(known), [name.decode() for name in replaced], admitted)

    async def listen(self, worker: str, call: Callable[[], object]) -> None:
        """Call ``call`` when this begins, and whenever a session of ``worker`` is replaced; it ends with an error."""
        client = self._listening = connect(self._url, self._timeout, to_one=True)
        try:
            calls = client.pubsub()
            await calls.subscribe(f"{self._counting}:{worker}")
            while not is_cancelled():
                heard = await calls.get_message(timeout=PULSE)
                if heard is None:
                    await calls.ping()
                    heard = await calls.get_message(timeout=self._timeout)
                if heard is None:
                    raise TimeoutError("no answer to a PING")
                if heard["type"] != "pong":
                    call()
        finally:
            await close(client)

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
        if self._client is not None:
            await close(self._client)
            self._client = None  # not before: who is cancelled meanwhile closes the rest later

    def explained(self, error: Exception) -> str:
        """Return what ``error`` means and what to do about it, in one line without secrets."""
        return explained(error, has_answered=self._has_answered)

    def forget(self) -> None:
        """Leave the client alone after a fork: to close it here would take it from the parent's event loop."""
        _INHERITED.extend((self._client, self._listening))
        self._client = self._listening = None


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
    try:
        client = connect(url, timeout=1)
        if (pool := getattr(client, "connection_pool", None)) is not None:
            pool.connection_class(**pool.connection_kwargs)
    except Exception as error:
        named = re.search(r"'(\w+)'", str(error))
        option = "" if named is None else named.group(1)
        hint = ": TLS is rediss://" if option.startswith("ssl_") else ""
        raise ValueError(
            f"redis_url has an option {option or 'or a value'} that redis-py cannot use there{hint}"
        ) from None
    return url


def _parts_of(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        addresses = _addresses_of(parts)
    except ValueError:
        addresses = []
    if not addresses:
        raise ValueError("redis_url should be a URL as redis://localhost:6379/0; its host or port cannot be read")
    return parts


def _check_address(parts: SplitResult) -> None:
    if "@" in parts.path + parts.query + parts.fragment:
        raise ValueError("redis_url cannot be read: write %2F for /, %3F for ?, %23 for # in the user and the password")
    if not all(host for host, _ in _addresses_of(parts)):
        raise ValueError(f"redis_url should name a host, as {parts.scheme}://localhost:6379")
    service, db = _place_of(parts)
    if parts.scheme.endswith("+sentinel") and not service:
        raise ValueError(
            "redis_url should name hosts and the service, as redis+sentinel://host:26379,other:26379/mymaster/0"
        )
    if not re.fullmatch("0?" if parts.scheme.endswith("+cluster") else "[0-9]*", db):
        raise ValueError(f"redis_url should end in the number of a database (a cluster has only 0), not in {db!r}")


def connect(url: str, timeout: float, *, to_one: bool = False) -> Client:
    """Return a client that neither retries nor waits for long; it connects with its first command.

    :param to_one: of a Redis Cluster to one of the nodes of the URL only: there every node has all messages.
    :raises Exception: of any kind, if redis-py does not like an option of the URL.
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
    _, db = _place_of(parts)
    user, at, _ = parts.netloc.rpartition("@")  # redis-py knows no URL of several hosts
    options: dict[str, Any] = {**parse_url(f"{scheme}://{user}{at}/{db}?{parts.query}"), **ours}
    addresses = _addresses_of(parts)
    if kind == "cluster" and to_one:
        host, port = random.choice(addresses)  # noqa: S311 - another one next time, should it be down
        return Redis.from_pool(ConnectionPool(host=host, port=port, **options))
    options["ssl"] = options.pop("connection_class", None) is SSLConnection
    if kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in addresses]
        # The keys of a limit are in one slot: that others are not covered is of no concern here.
        return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **options)
    theirs = {name: value for name, value in options.items() if name.startswith("ssl")} | ours
    for name in ("username", "password"):
        theirs[name] = options.pop(f"sentinel_{name}", None)
    sentinel = Sentinel(addresses, sentinel_kwargs=theirs, **options)  # type: ignore[no-untyped-call]
    return sentinel.master_for(_place_of(parts)[0])


def _addresses_of(parts: SplitResult) -> list[tuple[str, int]]:
    """Return hosts and ports; only Sentinels and nodes may be several.

    :raises ValueError: if they cannot be read.
    """
    _, _, kind = parts.scheme.partition("+")
    default = 26379 if kind == "sentinel" else 6379
    addresses = []
    for address in parts.netloc.rpartition("@")[2].split(",") if kind else [parts.netloc]:
        one = urlsplit(f"//{address}")
        addresses.append((one.hostname or "", default if one.port is None else one.port))
    return addresses


def _place_of(parts: SplitResult) -> tuple[str, str]:
    """Return the service that Sentinels are asked for, and the database."""
    path = parts.path.strip("/")
    if not parts.scheme.endswith("+sentinel"):
        return "", path
    service, _, db = path.partition("/")
    return service, db


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
            # A RedisCluster that means to look for its nodes anew, as after a failure, closes no connection.
            nodes = getattr(client, "nodes_manager", None)
            for node in () if nodes is None else (*nodes.nodes_cache.values(), *nodes.startup_nodes.values()):
                await node.disconnect()
    except Exception:  # noqa: S110 - it is thrown away
        pass


_NO_PASSWORD = "it wants a password: put it into the URL, as redis://:password@host"  # noqa: S105
_NO_PERMISSION = (
    "the user of the URL may not run EVAL, EVALSHA and the commands of the scripts on closecodes:*: see the README"
)
_MEANINGS = {
    # By the first word of the server's answer, or by what redis-py makes of it.
    "NOAUTH": _NO_PASSWORD,
    "WRONGPASS": "it does not accept the user or the password of the URL",
    "NOPERM": _NO_PERMISSION,
    "READONLY": "it is a replica, which takes no writes: use the primary's address, or redis+sentinel://",
    "OOM": "its memory is full (maxmemory): give it more, or a Redis of its own",
    "LOADING": "it is loading its data",
    "BUSY": "it is busy with somebody's script",
    "MASTERDOWN": "its primary is down",
    "MISCONF": "it takes no writes, since it cannot write to its disk",
    "MOVED": "it is a node of a Redis Cluster: use redis+cluster://",
    "CROSSSLOT": "it is behind a proxy that does not know hash tags",
    "CLUSTERDOWN": "its cluster is down",
    **dict.fromkeys(("Authentication required", "already authenticated", "unauthenticated"), _NO_PASSWORD),
    **dict.fromkeys(("ACL failure in script", "user executing the script"), _NO_PERMISSION),
    "DB index": "it has no database of the number in the URL",
    "Cluster mode is not enabled": "it is no Redis Cluster: use redis://",
    "TTL exhausted": "its cluster is moving the limit to another node",
    "No master found": "the Sentinels know no primary of that service, cannot be reached, or want a sentinel_password",
}


def explained(error: BaseException, *, has_answered: bool = True) -> str:
    """Return what ``error`` of a store means and what to do about it, in one line without secrets.

    :param has_answered: whether the store could be used before.
    """
    from redis import exceptions  # noqa: PLC0415 - an extra

    chain = [*_chain_of(error)]
    if _is_any_of(chain, TimeoutError, exceptions.TimeoutError) or str(error).startswith("Timeout "):
        return "it does not answer in time"
    for one in reversed(chain):  # what redis-py raises for an error knows less of it
        meaning = _of_the_way_there(one) or _of_an_answer(one)
        if meaning is not None:
            return meaning
    if not has_answered and re.search("closed by server|Connection reset|Broken pipe", str(error)):
        return "it hangs up: it may want TLS (rediss://), or a client certificate (ssl_certfile in the URL)"
    if _is_any_of(chain, OSError, exceptions.ConnectionError):
        return "it cannot be reached"
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _of_an_answer(error: BaseException) -> str | None:
    from redis import exceptions  # noqa: PLC0415

    if "access a channel" in str(error) or "access one of the channels" in str(error):
        return "the user of the URL may not use the channels closecodes:* (ACL SETUSER … &closecodes:*)"
    if denied := re.search(r"permissions to run the '([a-z|]+)' command", str(error)):
        return f"the user of the URL may not run {denied[1].replace('|', ' ').upper()}: see the README"
    # The code of the server's answer stands somewhere in the text, or redis-py has made it a class.
    found = re.search("|".join(_MEANINGS), str(error))
    if found is not None:
        return _MEANINGS[found.group()]
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
        if isinstance(error, kind):
            return _MEANINGS[code]
    return None


def _of_the_way_there(error: BaseException) -> str | None:
    match error:
        case ssl.SSLCertVerificationError(verify_message=why):
            return (
                f"its certificate is not accepted ({why.rstrip('.')}): give ?ssl_ca_certs=/path/ca.pem in the URL, "
                "and the host as the certificate has it"
            )
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return None  # it has ended, as without TLS
        case ssl.SSLError(reason=why):
            return (
                f"TLS with it fails ({(why or 'a file cannot be used').lower().replace('_', ' ')}): "
                "see ssl_ca_certs, ssl_certfile and ssl_keyfile in the URL"
            )
        case socket.gaierror():
            return "the name of its host cannot be resolved"
        case _:
            return None


def _is_any_of(chain: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(one, kinds) for one in chain)


def _chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Return an error, and those that it was raised for: redis-py tells some in its text alone."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
