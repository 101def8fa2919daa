"""Sessions in the middle of something that should not be interrupted: a call, a generation, a transfer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from asgi_closecodes.concurrency import COUNTING
from asgi_closecodes.session import Session


class BusySessions:
    """Counts the open ``busy()`` blocks of each session; sessions without one cost nothing.

    :param sessions: the admitted ones that are not over.
    """

    __slots__ = ("_blocks", "_sessions")

    def __init__(self, sessions: Collection[Session]) -> None:
        self._sessions = sessions
        self._blocks: dict[Session, int] = {}

    def __contains__(self, session: object) -> bool:
        return session in self._blocks

    @contextmanager
    def mark(self, session: Session) -> Iterator[None]:
        """Count ``session`` as busy within the block, in any task or thread; do nothing if it is over."""
        with COUNTING:
            is_counted = session in self._sessions
            if is_counted:
                self._blocks[session] = self._blocks.get(session, 0) + 1
        try:
            yield
        finally:
            if is_counted:
                self._unmark(session)

    def _unmark(self, session: Session) -> None:
        with COUNTING:
            if (blocks := self._blocks.get(session, 0)) > 1:
                self._blocks[session] = blocks - 1
            else:
                self._blocks.pop(session, None)

    def drop(self, session: Session) -> None:
        """Forget a session that is over: a task that its handler started may still be in a block."""
        self._blocks.pop(session, None)

    def count(self, leaving: Collection[object]) -> int:
        """Return how many sessions are busy and not ``leaving``."""
        with COUNTING:
            return sum(session not in leaving for session in self._blocks)

    def forget(self) -> None:
        """Reset in a child process: the sessions are the parent's."""
        self._blocks.clear()
