"""Gate that limits the open sessions of each key."""

from __future__ import annotations

import inspect
import ipaddress
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Literal

from asgi_closecodes.addresses import canonical_address
from asgi_closecodes.concurrency import COUNTING
from asgi_closecodes.exceptions import TryAgainLater
from asgi_closecodes.naming import shown
from asgi_closecodes.session import Session

from .base import PlainPermit
from .sessions import Limited


class _KeyedPermit(PlainPermit):
    """Permit of one session in a gate that counts by key."""

    __slots__ = ("_gate", "_session", "key")

    def __init__(self, gate: MaxSessionsPerKey, session: Session) -> None:
        self._gate = gate
        self.key = gate.key(session)  # stored: the session's own key may change
        self._session = session

    def acquire(self) -> None:
        """Count the session."""
        self._acquire(self.key)

    def _acquire(self, key: Hashable) -> None:
        self._gate.acquire(key, self._session)

    def rekey(self) -> None:
        """Move to the key that the session has now, or refuse it and stay."""
        if (key := self._gate.key(self._session)) != self.key:
            self._acquire(key)
            self._gate.release(self.key, self._session)
            self.key = key

    def release(self) -> None:
        """Stop counting the session."""
        self._gate.release(self.key, self._session)


class _ShadowPermit(_KeyedPermit):
    """Permit of a shadow, which replaces no other session."""

    __slots__ = ()

    def _acquire(self, key: Hashable) -> None:
        self._gate.acquire_or_refuse(key, self._session)


def client_network(session: Session) -> str | None:
    """Return the peer's address as the server knows it, IPv6 by its /64; None on a unix socket.

    A port, brackets or quotes in the address, as from a proxy's header, are removed; IPv4 in IPv6 becomes IPv4. Headers
    such as X-Forwarded-For are never read, since anybody can send them: servers have options for trusted proxies.
    """
    client = session.scope.get("client")
    if not client or client[0] == "":  # granian's on a unix socket is ("", "0")
        return None
    host = canonical_address(str(client[0]))
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))  # one subscriber has a /64 at least


class SessionsByKey(dict[Hashable, "Session | tuple[Session, int] | dict[Session, int | None]"]):
    """Open sessions of each key, the oldest first, each with the number that a cluster has given it.

    Most keys have one session, which is stored without a dictionary: that would take 0.2 KiB.
    """

    __slots__ = ("_keys_with", "_most")

    def __init__(self) -> None:
        super().__init__()
        self._keys_with: dict[int, int] = {}  # from a number of sessions, two or more, to how many keys have it
        self._most = 1

    @property
    def most(self) -> int:
        """Sessions of the key that has most; None is not a key."""
        return self._most if self._most > 1 or len(self) > (None in self) else 0

    def of(self, key: Hashable) -> dict[Session, int | None]:
        """Return the sessions of ``key``; do not change the result."""
        held = self.get(key)
        if held is None:
            return {}
        if isinstance(held, dict):
            return held
        return {held[0]: held[1]} if isinstance(held, tuple) else {held: None}

    def put(self, key: Hashable, session: Session, number: int | None = None) -> None:
        """Add a session of ``key``, or give it a number."""
        held = self.get(key)
        if held is None or held is session:
            self[key] = session if number is None else (session, number)
        else:
            sessions = self.of(key)
            before = len(sessions)
            sessions[session] = number
            self[key] = sessions
            if (count := len(sessions)) > before and key is not None:
                keys_with = self._keys_with
                keys_with[count] = keys_with.get(count, 0) + 1
                if before > 1:
                    keys_with[before] -= 1
                self._most = max(self._most, count)

    def drop(self, key: Hashable, session: Session) -> bool:
        """Remove a session of ``key``; return whether it was there."""
        if self.get(key) is not session:
            sessions = self.of(key)
            if session not in sessions:
                return False
            if (count := len(sessions)) > 1:
                del sessions[session]
                if key is not None:
                    keys_with = self._keys_with
                    keys_with[count] -= 1
                    if count > 2:
                        keys_with[count - 1] += 1
                    if count == self._most and not keys_with[count]:
                        del keys_with[count]
                        self._most = count - 1
                return True
        del self[key]
        return True


class MaxSessionsPerKey(Limited):
    """At most ``limit`` open sessions of one key in this process.

    :param key: the key of a session, any hashable value, by default :func:`client_network`; a session
        whose key is None is not limited. A key without a session takes no memory. It is asked at admission, and
        again when the handler sets :attr:`Session.key`.
    :param when_full: ``refuse`` the new session, or ``replace_oldest``: the oldest of that key is shed and the new
        one admitted. Without that, connections that died silently lock their own user out. While as many as the
        limit were replaced and still count, the new session is refused.
    :param name: see :class:`GateBase`.
    :raises ValueError: if ``limit`` is no number of sessions, here or when it is changed.
    :raises TypeError: if ``key`` cannot be called, or is async.
    """

    __slots__ = ("_leaving", "_lowered", "_sessions", "active", "key", "when_full")
    _own_name = "max_sessions_per_key"
    cause = "client"
    is_overload = False

    def __init__(
        self,
        limit: int | None,
        key: Callable[[Session], Hashable] = client_network,
        when_full: Literal["refuse", "replace_oldest"] = "refuse",
        *,
        name: str | None = None,
    ) -> None:
        if when_full not in {"refuse", "replace_oldest"}:
            raise ValueError(f"when_full={shown(when_full)}: use 'refuse' or 'replace_oldest'")
        if not callable(key):
            raise TypeError(f"key={shown(key)} cannot be called; use a function of the session")
        if inspect.iscoroutinefunction(key):  # each coroutine would be a different key
            raise TypeError(f"key={shown(key)} is async; it is called, not awaited: use a plain function")
        self._forget()
        self.key = key
        """Function that returns the key of a session."""
        self.when_full = when_full
        super().__init__(limit, name)

    def _forget(self) -> None:
        self._sessions = SessionsByKey()
        self._leaving = SessionsByKey()  # replaced sessions that are not over yet
        self.active = 0
        """Open sessions of all keys in this process."""

    def _on_limit_changed(self) -> None:
        self._lowered = self._limit is not None

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds one of the permits of the session's key."""
        return _KeyedPermit(self, session)

    def admit_in_shadow(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return the same without replacing another session."""
        return _ShadowPermit(self, session)

    def adopt(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Count a session that is already open."""
        permit = _KeyedPermit(self, session)
        self._hold(permit.key, session)
        return permit

    @property
    def usage(self) -> int:
        """Open sessions of the key that has most, which is nearest to the limit."""
        return self._sessions.most

    def active_of(self, key: Hashable) -> int:
        """Return the number of open sessions of ``key``."""
        with COUNTING:
            return len(self._sessions.of(key))

    def acquire(self, key: Hashable, session: Session) -> None:
        """Count one session of ``key`` more, or refuse it."""
        oldest: Session | None = None
        with COUNTING:
            limit = self._limit
            if limit is not None and key is not None and (key in self._sessions or limit == 0):
                oldest = self._to_replace(key, limit)
            if oldest is not None:
                self._retire(key, oldest)
            self._hold(key, session)
        if oldest is not None:
            self._end_replaced(oldest)

    def acquire_or_refuse(self, key: Hashable, session: Session) -> None:
        """Count one session of ``key`` more, or refuse it, without replacing the oldest."""
        with COUNTING:
            sessions = self._sessions.of(key)
            if self._limit is not None and key is not None and len(sessions) >= self._limit:
                raise self._refusal(len(sessions))
            self._hold(key, session)

    def _to_replace(self, key: Hashable, limit: int) -> Session | None:
        sessions = self._sessions.of(key)
        if len(sessions) < limit:
            return None
        if self.when_full == "refuse" or not sessions or self._holds_twice(key, limit):
            raise self._refusal(len(sessions))
        return next(iter(sessions))

    def _hold(self, key: Hashable, session: Session, number: int | None = None) -> None:
        """Count a session of ``key``; the caller holds the lock."""
        self._sessions.put(key, session, number)
        self.active += 1

    def _holds_twice(self, key: Hashable, limit: int, asking: int = 0) -> bool:
        """Whether ``key`` has twice its limit, including replaced sessions that are not over yet."""
        open_here = min(len(self._sessions.of(key)) + asking, limit)
        return open_here + len(self._leaving.of(key)) >= 2 * limit

    def _replace(self, key: Hashable, oldest: Session) -> None:
        with COUNTING:
            self._retire(key, oldest)
        self._end_replaced(oldest)

    def _retire(self, key: Hashable, oldest: Session) -> None:
        self.release(key, oldest)
        self._leaving.put(key, oldest)

    def _end_replaced(self, oldest: Session) -> None:
        oldest.schedule_close(TryAgainLater(cause="replaced", is_overload=self.is_overload))

    def release(self, key: Hashable, session: Session) -> None:
        """Count one session of ``key`` less, once."""
        with COUNTING:
            if self._sessions.drop(key, session):
                self.active -= 1
            else:
                self._leaving.drop(key, session)

    def to_shed(self) -> Iterator[Session]:
        """Yield the newest sessions of each key that is above a lowered limit."""
        if not self._lowered:
            return
        self._lowered = False  # reset first: the pass over all keys is too slow for every tick
        limit = self._limit  # read after the reset: another thread may lower it meanwhile
        if limit is None:
            return
        for key in [*self._sessions]:
            with COUNTING:
                sessions = [*self._sessions.of(key)]
            if key is not None and len(sessions) > limit:
                self._lowered = True
                yield from [session for session in sessions if not session.is_leaving][limit:]

    def forked(self) -> None:
        """Reset in a child process."""
        self._forget()
