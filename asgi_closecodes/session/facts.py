"""Facts of a session at the time of an event."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from asgi_closecodes.events import SessionFacts

from .scope import client_of, route_of

if TYPE_CHECKING:
    from .protocol import HandlerProtocol


class LateFacts(SessionFacts):
    """Facts that are computed when they are read. Only for readers that read them at once: see :meth:`made`."""

    __slots__ = ("_session",)
    _session: HandlerProtocol

    def __init__(self, session: HandlerProtocol) -> None:
        now: Any = self  # frozen for type checkers
        now._session = session  # noqa: SLF001 - its own
        now.phase = session.phase.public
        now.duration = time.monotonic() - session.arrived_at
        now.received = session.received
        now.sent = session.sent

    @property
    def id(self) -> str:
        """Id of the session, which is drawn when it is first read."""
        return self._session.id

    @property
    def route(self) -> str | None:
        """Template of the route that matched."""
        return route_of(self._session.scope, self._session.server_scope)

    @property
    def path(self) -> str:
        """Decoded path."""
        path: str = self._session.server_scope.get("path", "")
        return path

    @property
    def scheme(self) -> str:
        """Scheme of the URL."""
        scheme: str = self._session.scope.get("scheme", "ws")
        return scheme

    @property
    def client(self) -> tuple[str, int] | None:
        """Address and port of the peer."""
        return client_of(self._session.scope)

    def made(self) -> SessionFacts:
        """Return all facts as they are now, to keep."""
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
