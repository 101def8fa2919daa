"""Somebody else's data, or garbage, under the keys of the cluster gates."""

from contextlib import aclosing

import pytest

from asgi_closecodes.gates.cluster import CountRequest, KeyCount, RedisStore
from asgi_closecodes.gates.cluster.lease import Lease

from .processes import status

pytestmark = pytest.mark.anyio

SYNC = ("meta", "grants", "expiry")
COUNT = ("keys", "keys:said", "keys:d1")
OTHERS = {
    "string": ("SET", "x"),
    "list": ("LPUSH", "x"),
    "set": ("SADD", "x"),
    "stream": ("XADD", "*", "a", "b"),
}
OTHER_OF = {"expiry": ("HSET", "a", "b"), "keys": ("HSET", "a", "b")}
"""What is a hash where the scripts have a sorted set; all others are hashes."""


@pytest.fixture
def anyio_backend():
    return "asyncio"


def key_of(part):
    return f"closecodes:{{chat}}:{part}"


class Asking:
    """One worker that asks, by both scripts, whatever comes of it."""

    def __init__(self, url):
        self.store = RedisStore(url, "chat")
        self.lease = Lease(100)
        self.lease.used = 3
        self.seq = 0

    async def sync(self):
        self.lease.answer(await self.store.sync(self.lease.ask()))

    async def count(self):
        self.seq += 1
        counts = [KeyCount("d0", 1, 0), KeyCount("d1", 1, 1, [5])]
        await self.store.count(CountRequest("w", self.seq, 30, 5, counts, replaces=True))

    async def problem_of(self, part):
        with pytest.raises(Exception) as failed:
            await (self.sync if part in SYNC else self.count)()
        return self.store.describe_error(failed.value)

    async def aclose(self):
        await self.store.close()


@pytest.fixture
async def asking(each_server):
    async with aclosing(Asking(each_server.url)) as asking:
        yield asking


@pytest.mark.parametrize("part", [*SYNC, *COUNT])
@pytest.mark.parametrize("kind", [*OTHERS, "other"])
async def test_wrong_type_names_key_and_remedy(each_server, asking, part, kind):
    command, *arguments = OTHERS.get(kind) or OTHER_OF.get(part, ("ZADD", 1, "a"))
    each_server.command(command, key_of(part), *arguments)
    problem = await asking.problem_of(part)
    assert "WRONGTYPE" in problem
    assert f"redis-cli DEL '{key_of(part)}'" in problem
    assert "ResponseError" not in problem

    each_server.command("DEL", key_of(part))  # the remedy is one
    await asking.sync()
    await asking.count()


GARBAGE = [
    *(("meta", field) for field in ("alloc", "used", "beat", "skew", "doubt", "learn", "limit", "limit_until")),
    ("grants", "worker"),
    ("keys:said", "w"),
    ("keys:d1", "other"),
]
VALUES = ["garbage", " x", "nan", "inf", "1e300", "-1e300", "{}", "\x00\xff", "é"]


@pytest.mark.parametrize(("part", "field"), GARBAGE)
@pytest.mark.parametrize("value", VALUES)
async def test_garbage_names_key_and_remedy(server, part, field, value):
    async with aclosing(Asking(server.url)) as asking:
        await asking.sync()
        await asking.count()
        server.command("ZADD", key_of("keys"), 1e15, "other")
        field = asking.lease.worker if field == "worker" else field
        server.command("HSET", key_of(part), field, value)
        problem = await asking.problem_of(part)
        assert f"redis-cli DEL '{key_of(part)}'" in problem
        assert "ResponseError" not in problem

        server.command("DEL", key_of(part))
        await asking.sync()
        await asking.count()


@pytest.mark.parametrize("value", ["9" * 400 + ":1:1:1:1", "1:2:3"])
async def test_grant_that_is_no_number_is_named(server, value):
    async with aclosing(Asking(server.url)) as asking:
        await asking.sync()
        server.command("HSET", key_of("grants"), asking.lease.worker, value)
        assert key_of("grants") in await asking.problem_of("grants")


async def test_numbers_of_sessions_that_are_none_are_named(server):
    async with aclosing(Asking(server.url)) as asking:
        await asking.count()
        server.command("ZADD", key_of("keys"), 1e15, "other")
        server.command("HSET", key_of("keys:d1"), "other", "2:x,y")
        assert key_of("keys:d1") in await asking.problem_of("keys:d1")


async def test_negative_sum_lets_nobody_past_the_limit(server):
    async with aclosing(Asking(server.url)) as asking:
        await asking.sync()
        server.command("HSET", key_of("meta"), "alloc", "-100")
        assert key_of("meta") in await asking.problem_of("meta")


@pytest.mark.parametrize("part", SYNC)
def test_status_names_the_key_of_a_wrong_type(server, part):
    server.command("SET", key_of(part), "x")
    result = status("--redis-url", server.url, "--name", "chat")
    assert result.exit_code == 1
    assert f"DEL '{key_of(part)}'" in result.output.replace("\n", "")


@pytest.mark.parametrize(("part", "field"), [("meta", "alloc"), ("meta", "limit"), ("grants", "w")])
@pytest.mark.parametrize("value", ["garbage", "inf", "\udcff"])
def test_status_names_the_key_of_garbage(server, part, field, value):
    server.command("ZADD", key_of("expiry"), 1e15, "w")
    server.command("HSET", key_of(part), field, value.encode("utf-8", "surrogateescape"))
    result = status("--redis-url", server.url, "--name", "chat")
    assert result.exit_code == 1
    assert f"DEL '{key_of(part)}'" in result.output.replace("\n", "")
