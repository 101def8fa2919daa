"""Store of the cluster gates on a Redis or Valkey."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from asgi_closecodes.gates.cluster.lease import Reply, Request
from asgi_closecodes.gates.cluster.store import CountReply, CountRequest, State, WorkerState, checked_name
from asgi_closecodes.gates.cluster.task import is_cancelled

from .errors import describe_error
from .url import Client, checked_url, connect

PING_AFTER_S = 5.0
"""Seconds of silence on a subscription after which a PING checks its connection."""

SYNC = files(__package__).joinpath("sync.lua").read_text()

COUNT = files(__package__).joinpath("count.lua").read_text()


_INHERITED: list[Client] = []


def keys_of(name: str) -> tuple[str, str, str]:
    """Return the keys of the limit ``name``: one hash tag, so that a Redis Cluster has them in one slot."""
    return f"closecodes:{{{name}}}:meta", f"closecodes:{{{name}}}:grants", f"closecodes:{{{name}}}:expiry"


class RedisStore:
    """Leases on a Redis (6.2 or later) or a Valkey.

    :param url: ``redis://``, ``rediss://`` (TLS) or ``unix://`` as redis-py reads them.
        ``redis+sentinel://[user:password@]host:port,host:port/service/db`` asks Sentinels for the primary; their own
        user goes into ``?sentinel_username=`` and ``sentinel_password=``.
        ``redis+cluster://[user:password@]host:port,host:port`` names nodes of a Redis Cluster. Both use TLS as
        ``rediss+…``. Options of redis-py follow as a query: ``?ssl_ca_certs=/path/ca.pem``.
    :param name: name of the limit; processes with the same name share it.
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
        """Record a worker's report, and return its quota."""
        reply = Reply(*await self._sync.run(self._connected(), self._keys, request.arguments()))
        self._has_answered = True
        return reply

    async def count(self, request: CountRequest) -> CountReply:
        """Record a worker's sessions by key, and return how many more are admitted."""
        keys = [f"{self._counting}:{part}" for part in ("said", *(count.digest for count in request.counts))]
        answer = await self._count.run(self._connected(), [self._counting, *keys], request.arguments())
        self._has_answered = True
        known, replaced, *pairs = answer
        admitted = [*zip(pairs[::2], pairs[1::2], strict=True)]
        return CountReply(bool(known), [name.decode() for name in replaced], admitted)

    async def listen(self, worker: str, call: Callable[[], object]) -> None:
        """Call ``call`` at the start and whenever a session of ``worker`` is replaced, until an error is raised."""
        client = self._listening = connect(self._url, self._timeout, to_one=True)
        try:
            calls = client.pubsub()
            await calls.subscribe(f"{self._counting}:{worker}")
            while not is_cancelled():
                message = await calls.get_message(timeout=PING_AFTER_S)
                if message is None:
                    await calls.ping()
                    message = await calls.get_message(timeout=self._timeout)
                if message is None:
                    raise TimeoutError("no answer to a PING")
                if message["type"] != "pong":
                    call()
        finally:
            await close(client)

    async def check_config(self) -> str | None:
        """Return why this Redis' configuration may lose the leases; None if it does not."""
        memory = await self._connected().info("memory")
        policy = memory.get("maxmemory_policy", "") if isinstance(memory, dict) else ""
        if isinstance(policy, str) and policy.startswith("allkeys") and memory.get("maxmemory", 0):
            return (
                f"this Redis may evict the leases (maxmemory-policy {policy}): "
                "nobody gets more as long as a lease lasts then; use noeviction or a volatile policy"
            )
        return None

    async def state(self) -> State:
        """Return the state of all workers."""
        client = self._connected()
        meta_key, grants_key, expiry_key = self._keys
        with _naming(meta_key):
            meta: Mapping[bytes, bytes] = await client.hgetall(meta_key)
            numbers = {key.decode(): float(value) for key, value in meta.items() if key != b"limit_by"}
            limit, alloc, total = (int(numbers.get(name, 0)) for name in ("limit", "alloc", "used"))
        with _naming(grants_key):
            grants: Mapping[bytes, bytes] = await client.hgetall(grants_key)
            records = {worker: [int(field) for field in record.split(b":")] for worker, record in grants.items()}
        with _naming(expiry_key):
            expiry: Sequence[tuple[bytes, float]] = await client.zrange(expiry_key, 0, -1, withscores=True)
        seconds, microseconds = await client.time()
        now = seconds * 1000 + microseconds / 1000 - numbers.get("skew", 0)
        workers = []
        for worker, ends in expiry:
            with _naming(grants_key):
                grant, used, _, since, _ = records.get(worker, (0, 0, 0, 0, 0))
            workers.append(
                WorkerState(worker.decode(), grant, used, max(now - since, 0) / 1000, max(float(ends) - now, 0) / 1000)
            )
        return State(
            limit=limit,
            alloc=alloc,
            used=total,
            learning=max(numbers.get("learn", 0) - now, 0) / 1000,
            workers=tuple(workers),
        )

    def _connected(self) -> Client:
        if self._client is None:
            self._client = connect(self._url, self._timeout)
        return self._client

    async def close(self) -> None:
        """Close the client's connections; the next call opens new ones.

        Needed after each failure: a cancelled or timed-out command leaves its answer unread, and the next command would
        get that.
        """
        if self._client is not None:
            await close(self._client)
            self._client = None  # last: if this is cancelled, a later call closes the rest

    def describe_error(self, error: Exception) -> str:
        """Return what ``error`` means and what to do about it, in one line without secrets."""
        return describe_error(error, has_answered=self._has_answered)

    def forget(self) -> None:
        """Drop the client after a fork without closing it: its sockets belong to the parent's event loop."""
        _INHERITED.extend((self._client, self._listening))
        self._client = self._listening = None


class Script:
    """Lua script, called by its digest, and loaded only if the server does not know it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._digest: str | None = None

    async def run(self, client: Client, keys: Sequence[str], arguments: Sequence[str | int]) -> list[Any]:
        """Run the script, and return its result."""
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


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Add to an error of the block that the data under ``key`` is wrong, as the scripts' errors do."""
    try:
        yield
    except (ValueError, OverflowError):
        raise ValueError(f"GARBAGE {key}") from None
    except Exception as error:
        if "WRONGTYPE" not in str(error):
            raise
        raise ValueError(f"WRONGTYPE {key}") from None


async def close(client: Client) -> None:
    """Close all connections of ``client``, in use or not, within a short time."""
    try:
        async with asyncio.timeout(1):
            await client.aclose()
            pool = getattr(client, "connection_pool", None)
            if pool is not None:
                await pool.disconnect()
            for sentinel in getattr(getattr(pool, "sentinel_manager", None), "sentinels", ()):
                await sentinel.aclose()
            # A RedisCluster that is about to discover its nodes again, as after a failure, closes no connection.
            nodes = getattr(client, "nodes_manager", None)
            for node in () if nodes is None else (*nodes.nodes_cache.values(), *nodes.startup_nodes.values()):
                await node.disconnect()
    except Exception:  # noqa: S110 - it is thrown away
        pass
