"""Gate that limits the open sessions of a process, and the base of gates with a limit."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from asgi_closecodes.bounds import MAX_NUMBER, is_between
from asgi_closecodes.concurrency import COUNTING
from asgi_closecodes.naming import shown
from asgi_closecodes.session import Session

from .base import GateBase, PlainPermit


class _Counter(Protocol):
    def acquire(self, session: Any, /) -> None: ...
    def release(self, session: Any, /) -> None: ...


class Permit(PlainPermit):
    """Permit of one session, or one for all if they are alike; taken without an await after the check."""

    __slots__ = ("_gate", "_session")

    def __init__(self, gate: _Counter, session: Session) -> None:
        self._gate = gate
        self._session = session

    def acquire(self) -> None:
        """Count the session."""
        self._gate.acquire(self._session)

    def release(self) -> None:
        """Stop counting the session."""
        self._gate.release(self._session)


class Limited(GateBase):
    """Gate with a limit that may change at any time, even to below its usage."""

    __slots__ = ("__weakref__", "_limit")

    def __init__(self, limit: int | None, name: str | None = None) -> None:
        super().__init__(name)
        self.limit = limit
        _limits.add(self)

    @property
    def is_watched(self) -> bool:
        """Whether the ticker has work to do for this gate, as it has if there is a limit."""
        return self._is_ticked and self._limit is not None

    @property
    def limit(self) -> int | None:
        """Highest usage at once; None is no limit, 0 admits nobody."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        if limit is not None and not (isinstance(limit, int) and is_between(limit, 0)):
            raise ValueError(
                f"limit={shown(limit)}: use a whole number, 0 or more, or None for no limit; at most {MAX_NUMBER}"
            )
        self._limit = limit
        self._on_limit_changed()

    def _on_limit_changed(self) -> None:
        """Apply a new limit."""

    def forked(self) -> None:
        """Reset in a child process: the sessions are the parent's."""


_limits: weakref.WeakSet[Limited] = weakref.WeakSet()


def _forked() -> None:
    for limit in [*_limits]:
        limit.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class MaxSessions(Limited, PlainPermit):
    """At most ``limit`` open sessions in this process.

    :param reserve: share of the limit that a priority may not use. With ``{2: 0.2}`` sessions of priority 2 are
        admitted only while less than 80 % of the permits are taken. Lower numbers are more important. A priority that
        is not named may take all permits. See :attr:`Session.priority`.
    :param name: see :class:`GateBase`.
    :raises ValueError: if ``limit`` is no number of sessions, here or when it is changed, or a share is not
        between 0 and 1.
    """

    __slots__ = ("reserve", "usage")
    _own_name = "max_sessions"
    cause = "full"
    usage: int
    """Open sessions. They are counted without a limit too, for one that is set later."""

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
        """Return a context manager that holds one of the permits."""
        return Permit(self, session) if self.reserve else self  # without priorities all permits are alike

    def adopt(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Count a session that is already open."""
        self.usage += 1
        return self.admit(session)

    def acquire(self, session: Session | None = None) -> None:
        """Count one session more, or refuse it."""
        with COUNTING:
            if self._limit is not None:
                reserved = 0 if session is None else self.reserve.get(session.priority, 0)
                limit = self._limit * (1 - reserved) if reserved else self._limit
                if self.usage >= limit:
                    raise self._refusal(self.usage)
            self.usage += 1

    def release(self, _session: Session | None = None) -> None:
        """Count one session less."""
        with COUNTING:
            self.usage -= 1

    def excess(self) -> int:
        """Return how many sessions are above a lowered limit."""
        limit = self._limit
        return 0 if limit is None else max(self.usage - limit, 0)

    def forked(self) -> None:
        """Reset in a child process."""
        self.usage = 0
