"""One limit over many processes and hosts, on a Redis or Valkey: quota is leased to workers, not one key a session."""

from .sessions import ClusterSessions
from .store import LeaseStore, RedisStore, checked_name, checked_url

__all__ = ["ClusterSessions", "LeaseStore", "RedisStore", "checked_name", "checked_url"]
