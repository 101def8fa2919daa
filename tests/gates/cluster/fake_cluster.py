"""Workers and a store without a network."""

from __future__ import annotations

import redis.exceptions

from asgi_closecodes.gates.cluster.lease import Lease, Reply
from asgi_closecodes.gates.cluster.redis.client import SYNC, keys_of

TTL = 30.0
KEYS = keys_of("test")
_TIME = "redis.call('TIME')"


def with_our_clock(text):
    """The shipped script, but for where it asks for the time."""
    assert text.count(_TIME) == 1
    return text.replace(_TIME, "{ARGV[13], ARGV[14]}")


class Cluster:
    """Workers and a store in one virtual time."""

    def __init__(self, client, limit=20, fallback="closed"):
        self.client = client
        self.script = client.register_script(with_our_clock(SYNC))
        self._connection = client.connection_pool.get_connection()
        self.limit = limit
        self.fallback = fallback
        self.now = 1_000.0
        self.jump = 0.0
        """What the server's clock is ahead."""
        client.flushall()

    def worker(self, limit=None, **options):
        options = {"fallback": self.fallback, **options}
        return Lease(
            limit or self.limit, TTL, clock=lambda: self.now, jitter=lambda low, high: (low + high) / 2, **options
        )

    def deliver(self, request):
        micros = round((self.now + self.jump + 1_700_000_000) * 1e6)
        arguments = [*request.arguments(), micros // 10**6, micros % 10**6]
        # What the client does beside takes as long as all else, and there are tens of thousands of these.
        command = [b"EVALSHA", self.script.sha, len(KEYS), *KEYS, *arguments]
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
        packed = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        self._connection.send_packed_command([b"*%d\r\n%b" % (len(parts), packed)])
        try:
            return Reply(*self._connection.read_response())
        except redis.exceptions.NoScriptError:
            return Reply(*self.script(keys=KEYS, args=arguments))

    def sync(self, lease, **options):
        reply = self.deliver(lease.ask(**options))
        lease.answer(reply)
        return reply

    def grants(self):
        return {
            key.decode(): [int(part) for part in value.split(b":")]
            for key, value in self.client.hgetall(KEYS[1]).items()
        }

    def meta(self, name):
        return float(self.client.hget(KEYS[0], name) or 0)
