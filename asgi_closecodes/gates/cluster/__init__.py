"""One limit over many processes and hosts, on a Redis or Valkey. Quota is leased to workers: no key a session."""

from .per_key import ClusterSessionsPerKey
from .redis.client import RedisStore
from .redis.url import checked_url
from .sessions import ClusterSessions
from .store import CountReply, CountRequest, CountStore, KeyCount, LeaseStore, State, checked_name

__all__ = [
    "ClusterSessions",
    "ClusterSessionsPerKey",
    "CountReply",
    "CountRequest",
    "CountStore",
    "KeyCount",
    "LeaseStore",
    "RedisStore",
    "State",
    "checked_name",
    "checked_url",
]
