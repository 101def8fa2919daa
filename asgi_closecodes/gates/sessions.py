"""The gate that counts open sessions, and what limits have in common."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from asgi_closecodes.bounds import MAX_NUMBER, is_between
from asgi_closecodes.concurrency import COUNTING
from asgi_closecodes.exceptions import TryAgainLater
from asgi_closecodes.naming import shown
from asgi_closecodes.session import Session

from .base import GateBase, PlainPermit


class _Counter(Protocol):
    def acquire(self, session: Any, /) -> None: ...
    def release(self, session: Any, /) -> None: ...


class Permit(PlainPermit):
    """One session's place: checked and taken without an await in between."""

    __slots__ = ("_gate", "_session")

    def __init__(self, gate: _Counter, session: Session) -> None:
        self._gate = gate
        self._session = session

    def acquire(self) -> None:
        """Count the session."""
        self._gate.acquire(self._session)

    def release(self) -> None:
        """Count it no more."""
        self._gate.release(self._session)


class Limited(GateBase):
    """A limit that may be changed at any time, to below what is in use too."""

    __slots__ = ("__weakref__", "_limit")

    def __init__(self, limit: int | None, name: str | None = None) -> None:
        super().__init__(name)
        self.limit = limit
        _limits.add(self)

    @property
    def is_watched(self) -> bool:
        """Whether the ticker has something to do for it: where there is a limit."""
        return self._is_ticked and self._limit is not None

    @property
    def limit(self) -> int | None:
        """The most that may be in use at once; None is no limit, 0 admits nobody."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        if limit is not None and not (isinstance(limit, int) and is_between(limit, 0)):
            raise ValueError(
                f"limit={shown(limit)}: use a whole number, 0 or more, or None for no limit; at most {MAX_NUMBER}"
            )
        self._limit = limit
        self._follow_limit()

    def _follow_limit(self) -> None:
        """Do what a new limit asks for."""

    def forked(self) -> None:
        """Begin anew in a child process: the sessions are the parent's."""


_limits: weakref.WeakSet[Limited] = weakref.WeakSet()


def _forked() -> None:
    for limit in [*_limits]:
        limit.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class MaxSessions(Limited, PlainPermit):
    """At most ``limit`` open sessions in this process.

    :param reserve: shares of the limit that are kept from a priority: with ``{2: 0.2}`` sessions of priority 2 are
        admitted only while less than 80 % of the places are taken. Lower numbers are more important; a priority
        that is not named may take all places. See :attr:`Session.priority`.
    :param name: see :class:`GateBase`.
    :raises ValueError: if ``limit`` is no number of sessions, here or when it is changed, or a share is not
        between 0 and 1.
    """

    __slots__ = ("reserve", "usage")
    _own_name = "max_sessions"
    cause = "full"
    usage: int
    """Open sessions, without a limit too: one that is set later finds them."""

    def __init__(
        self, limit: int | None, reserve: Mapping[int, float] | None = None, *, name: str | None = None
    ) -> None:
        super().__init__(limit, name)
        self.reserve = dict(reserve or {})
        for priority, share in self.reserve.items():
            if not (isinstance(share, (int, float)) and 0 <= share <= 1):
                raise ValueError(f"reserve={shown({priority: share})}: use a share of the limit between 0 and 1")
        self.usage = 0

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds one of the places."""
        return Permit(self, session) if self.reserve else self  # which stands for each, where they are alike

    def adopt(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Count a session that is open already."""
        self.usage += 1
        return self.admit(session)

    def acquire(self, session: Session | None = None) -> None:
        """Count one session more, or refuse it."""
        with COUNTING:
            if self._limit is not None:
                reserved = 0 if session is None else self.reserve.get(session.priority, 0)
                limit = self._limit * (1 - reserved) if reserved else self._limit
                if self.usage >= limit:
                    raise TryAgainLater(cause=self.cause, usage=self.usage, limit=self._limit)
            self.usage += 1

    def release(self, _session: Session | None = None) -> None:
        """Count one session less."""
        with COUNTING:
            self.usage -= 1

    def excess(self) -> int:
        """Return how many sessions are too many, after the limit was lowered."""
        limit = self._limit
        return 0 if limit is None else max(self.usage - limit, 0)

    def forked(self) -> None:
        """Begin anew in a child process."""
        self.usage = 0
