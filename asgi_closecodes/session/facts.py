"""Facts of a session at the time of an event."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from asgi_closecodes.events import SessionFacts

from .scope import client_of, route_of

if TYPE_CHECKING:
    from .protocol import HandlerProtocol


class LateFacts(SessionFacts):
    """Facts of which the costly ones are made when they are read, for those who read them at once or never."""

    __slots__ = ("_session",)
    _session: HandlerProtocol

    def __init__(self, session: HandlerProtocol) -> None:
        put = object.__setattr__  # as a frozen dataclass does
        put(self, "_session", session)
        put(self, "phase", session.phase.public)
        put(self, "duration", time.monotonic() - session.arrived_at)
        put(self, "received", session.received)
        put(self, "sent", session.sent)

    @property
    def id(self) -> str:
        """The session's id, which is made when somebody asks for it."""
        return self._session.id

    @property
    def route(self) -> str | None:
        """The template that matched."""
        return route_of(self._session.scope, self._session.server_scope)

    @property
    def path(self) -> str:
        """The decoded path."""
        path: str = self._session.server_scope.get("path", "")
        return path

    @property
    def scheme(self) -> str:
        """The scheme of the URL."""
        scheme: str = self._session.scope.get("scheme", "ws")
        return scheme

    @property
    def client(self) -> tuple[str, int] | None:
        """The peer's address and port."""
        return client_of(self._session.scope)

    def made(self) -> SessionFacts:
        """Return all of them as they are now, for whoever keeps them."""
        return SessionFacts(
            self.id,
            self.route,
            self.path,
            self.scheme,
            self.client,
            self.phase,
            self.duration,
            self.received,
            self.sent,
        )
