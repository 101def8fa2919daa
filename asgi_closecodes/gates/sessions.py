"""Gates that count open sessions: all of this process's, or those of one key."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

from asgi_closecodes.exceptions import TryAgainLater
from asgi_closecodes.session import Session


class _Counter(Protocol):
    def take(self, key: Hashable) -> None: ...
    def give_back(self, key: Hashable) -> None: ...


class _Place(AbstractAsyncContextManager[None]):
    """One session's place: checked and taken without an await in between, given back likewise."""

    __slots__ = ("_gate", "_key")

    def __init__(self, gate: _Counter, key: Hashable) -> None:
        self._gate = gate
        self._key = key  # kept: the session may have another one by the time it leaves

    async def __aenter__(self) -> None:
        self._gate.take(self._key)

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.give_back(self._key)


class _Limited:
    """A limit on open sessions, which may be changed at any time, to below what is in use too."""

    __slots__ = ("_limit", "active")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.active = 0
        """Open sessions. They are counted without a limit too: one that is set later finds them."""

    @property
    def limit(self) -> int | None:
        """Sessions that may be open; None is no limit, 0 admits nobody."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise ValueError(f"limit={limit!r}: use a whole number of sessions, 0 or more, or None for no limit")
        self._limit = limit


class MaxSessions(_Limited):
    """At most ``limit`` open sessions in this process.

    :raises ValueError: if ``limit`` is no number of sessions, here or when it is changed.
    """

    __slots__ = ()

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds one of the places."""
        del session
        return _Place(self, None)

    def take(self, _key: Hashable) -> None:
        """Count one session more, or refuse it."""
        if self._limit is not None and self.active >= self._limit:
            raise TryAgainLater(cause="full", usage=self.active, limit=self._limit)
        self.active += 1

    def give_back(self, _key: Hashable) -> None:
        """Count one session less."""
        self.active -= 1


def client_network(session: Session) -> str | None:
    """Return the peer's address as the server knows it, IPv6 by its /64; None on a unix socket.

    A forwarded header is never read: anybody can send one. Servers have options for trusted proxies.
    """
    client = session.scope.get("client")
    if not client:
        return None
    host = str(client[0])
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))  # one subscriber has at least a /64


class MaxSessionsPerKey(_Limited):
    """At most ``limit`` open sessions of one key in this process.

    :param key: the key of a session, any hashable value, by default :func:`client_network`; a session
        whose key is None is not limited. A key without a session takes no memory.
    :raises ValueError: if ``limit`` is no number of sessions, here or when it is changed.
    """

    __slots__ = ("_counts", "_key")

    def __init__(self, limit: int | None, key: Callable[[Session], Hashable] = client_network) -> None:
        super().__init__(limit)
        self._key = key
        self._counts: dict[Hashable, int] = {}

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds one of the places of the session's key."""
        return _Place(self, self._key(session))

    def active_of(self, key: Hashable) -> int:
        """Return the number of open sessions of ``key``."""
        return self._counts.get(key, 0)

    def take(self, key: Hashable) -> None:
        """Count one session of ``key`` more, or refuse it."""
        count = self._counts.get(key, 0)
        if key is not None and self._limit is not None and count >= self._limit:
            raise TryAgainLater(cause="client", usage=count, limit=self._limit)
        self._counts[key] = count + 1
        self.active += 1

    def give_back(self, key: Hashable) -> None:
        """Count one session of ``key`` less."""
        count = self._counts[key] - 1
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]
        self.active -= 1
