"""Message rate limit for all sessions of a guard."""

from __future__ import annotations

from collections.abc import Collection

from asgi_closecodes.events import GateState
from asgi_closecodes.exceptions import TooManyMessages
from asgi_closecodes.session import MessageRate, Session, limit_messages
from asgi_closecodes.settings import Settings


class MessageRates:
    """Limits the rate at which handlers receive, in all sessions of a guard.

    :param sessions: the admitted ones that are not over.
    """

    __slots__ = ("_sessions", "rate")

    def __init__(self, sessions: Collection[Session]) -> None:
        self._sessions = sessions
        self.rate: MessageRate | None = None

    def apply(self, settings: Settings) -> None:
        """Apply ``settings``, to open sessions too."""
        before, self.rate = self.rate, _rate_of(settings)
        if self.rate != before:
            for session in [*self._sessions]:
                limit_messages(session, self.rate)

    def add(self, session: Session) -> None:
        """Limit ``session``, if there is a limit."""
        if self.rate is not None:
            limit_messages(session, self.rate)

    def state(self) -> list[GateState]:
        """Return the limit in the form of a gate's state for a snapshot; empty if there is no limit."""
        if (rate := self.rate) is None:
            return []
        name = TooManyMessages.gate
        return [{"name": name, "cause": name, "usage": None, "limit": rate.per_second, "shadow": rate.is_shadow}]


def _rate_of(settings: Settings) -> MessageRate | None:
    per_second, burst = settings.messages_per_second, settings.message_burst
    if per_second is None:
        return None
    burst = max(per_second, 1.0) if burst is None else burst
    return MessageRate(per_second, burst, settings.message_patience, "messages_per_second" in settings.shadow)
