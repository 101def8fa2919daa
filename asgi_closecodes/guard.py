"""What one process knows: its live sessions, its gate, its rules, and who is told."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from . import events
from .exceptions import ExceptionMapping, checked_mapping
from .gates import AllOf, Gate
from .logs import LogObserver
from .rates import Rate
from .retry import RetryQueue
from .session import Rules, Session
from .settings import Settings, limited_gates, unknown_settings


class Guard:
    """What the middleware asks and tells; share one to inspect and to change it while it runs.

    :param settings: by default read from the environment.
    :param gate: asked after the gates that the settings describe.
    :param exceptions: what exceptions of the application mean: a close code, a Close, or a function of the
        exception that returns either. Subclasses are included, the most specific class counts.
    :param observers: called with every event (see :mod:`asgi_closecodes.events`), beside the logs.
    :param subprotocol: chooses one of the offered subprotocols where a refused handshake is accepted only
        to be closed; by default the first.
    :raises SettingsError: if the settings cannot be used.
    :raises ValueError: if ``exceptions`` cannot be used.
    :raises TypeError: if ``gate`` is no gate, or an observer cannot be called.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        gate: Gate | None = None,
        exceptions: ExceptionMapping | None = None,
        observers: Iterable[events.Observer] = (),
        subprotocol: Callable[[Sequence[str]], str | None] | None = None,
    ) -> None:
        if gate is not None and not callable(getattr(gate, "admit", None)):
            raise TypeError(f"gate={gate!r} has no method admit(session); see asgi_closecodes.gates.Gate")
        self.settings = Settings() if settings is None else settings
        self.exceptions = checked_mapping(exceptions)
        self.subprotocol = subprotocol
        self.sessions: set[Session] = set()
        """The admitted sessions that are not over."""
        self._tally = _Tally()
        self._observers: list[events.Observer] = [self._tally, LogObserver(), *observers]
        for observer in self._observers:
            if not callable(observer):
                raise TypeError(f"observers: {observer!r} cannot be called; an observer is a function of an event")
        self._failed_observers: set[int] = set()
        self._limited_gates = limited_gates(self.settings)
        self.gate = AllOf(*self._limited_gates.values(), *(() if gate is None else (gate,)))
        self._queue = RetryQueue()
        self._refusals = Rate(0, 0)
        self._follow_settings()
        for name, nearest in unknown_settings().items():
            self.report(events.SettingIgnored(name, nearest))
        self.report(events.LimitsSet(self.settings.limits()))

    def _follow_settings(self) -> None:
        settings = self.settings
        self.rules = Rules(
            error_code=settings.error_code,
            try_again_code=settings.try_again_code,
            handshake=settings.handshake,
            reraise=settings.reraise,
            debug=settings.debug,
        )
        for name, gate in self._limited_gates.items():
            gate.limit = getattr(settings, name)
        self.gate.failure = settings.gate_failure
        self._queue.cap = settings.retry_after_cap
        self._refusals.per_second = self._refusals.burst = settings.max_refusals_per_second
        self._observers[1] = LogObserver(path=settings.log_path, client=settings.log_client)

    def update(self, **changes: Any) -> None:
        """Change settings while running: ``guard.update(max_sessions=500)``.

        Sessions that are open stay open, also above a lowered limit. All changes are made, or none.

        :raises SettingsError: if the settings cannot be used.
        """
        before = self.settings
        self.settings = before.changed(**changes)
        self._follow_settings()
        changed = {name: getattr(self.settings, name) for name in changes}
        self.report(events.LimitsSet(self.settings.limits(), changed))

    def snapshot(self) -> dict[str, Any]:
        """Return the state of this process as plain data: sessions, gates, and counts since the start."""
        return {
            "sessions": len(self.sessions),
            "gates": [
                {
                    "name": type(gate).__name__,
                    "active": getattr(gate, "active", None),
                    "limit": getattr(gate, "limit", None),
                }
                for gate in self.gate.gates
            ],
            "errors": self._tally.errors,
            "refusals": dict(self._tally.refusals),
            "closes": dict(self._tally.closes),
        }

    # What sessions need

    def session(self, scope: Scope, receive: Receive, send: Send) -> Session:
        """Return a session for one WebSocket scope."""
        return Session(self, scope, receive, send)

    def began(self, session: Session) -> None:
        """Take note of an admitted session."""
        self.sessions.add(session)

    def over(self, session: Session) -> None:
        """Take note that it is over."""
        self.sessions.discard(session)
        self._queue.freed()

    def retry_after(self) -> float:
        """Take the next place in the retry queue; return the seconds until its turn."""
        return self._queue.hint()

    def may_refuse_by_close(self) -> bool:
        """Whether one more refusal may hold a socket until its peer answers the close."""
        return self._refusals.take()

    def report(self, event: events.Event) -> None:
        """Hand ``event`` to every observer. One that raises is reported once, and called again."""
        for observer in self._observers:
            try:
                returned = observer(event)
                if returned is not None:
                    _reject(returned)
            except Exception as error:
                if id(observer) not in self._failed_observers:
                    self._failed_observers.add(id(observer))
                    self.report(events.CallbackFailed(f"observer {observer!r}", error))


def _reject(returned: object) -> None:
    if inspect.iscoroutine(returned):
        returned.close()
        raise TypeError("an observer is a plain function; this one is async and was not awaited")


class _Tally:
    """Counts for :meth:`Guard.snapshot`."""

    def __init__(self) -> None:
        self.errors = 0
        self.refusals: Counter[str] = Counter()
        self.closes: Counter[int] = Counter()

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.SessionClosed(close=close) if close is not None:
                self.closes[close.code] += 1
            case events.SessionRefused(cause=cause):
                self.refusals[cause] += 1
            case events.SessionFailed():
                self.errors += 1
            case _:
                pass
