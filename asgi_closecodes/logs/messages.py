"""Events to log records: the message carries the essentials, flat dotted extras carry the rest.

The exception travels as ``exc_info`` alone, so that each formatter and service renders it its own way. The keys are
described by ``schema.json`` beside this file.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from asgi_closecodes import events
from asgi_closecodes.codes import Close
from asgi_closecodes.error_identity import type_name
from asgi_closecodes.token_bucket import Rate, Unlimited, Window

from .redaction import one_line, raw_path, safe_client, safe_path
from .storms import Key, Storms

# No handler is installed, not even a NullHandler: with one, an application that configures no
# logging would lose its tracebacks; without one, Python prints warnings and errors to stderr.
_ERROR = logging.getLogger("asgi_closecodes.error")
_GATE = logging.getLogger("asgi_closecodes.gate")
_SESSION = logging.getLogger("asgi_closecodes.session")
_CONFIG = logging.getLogger("asgi_closecodes.config")

_ALMOST_NONE = 1e-9
"""Records a minute where none are wanted after the burst: a Rate of 0 lets no burst through either."""

_Sampler: TypeAlias = Literal["error", "refusal"]


class _Line(NamedTuple):
    """How an event is logged."""

    name: str
    logger: logging.Logger
    level: int
    sampler: _Sampler | None = None
    """Which of the samplers may have it counted instead of written."""


_LINES: dict[type, _Line] = {
    events.SessionFailed: _Line("closecodes.session.exception", _ERROR, logging.ERROR, "error"),
    events.CloseFailed: _Line("closecodes.session.close_failed", _ERROR, logging.WARNING, "error"),
    events.CloseRepaired: _Line("closecodes.session.close_repaired", _ERROR, logging.WARNING, "error"),
    events.GateFailed: _Line("closecodes.gate.failed", _ERROR, logging.ERROR, "error"),
    events.CallbackFailed: _Line("closecodes.callback.failed", _ERROR, logging.ERROR, "error"),
    events.SessionRefused: _Line("closecodes.session.refused", _GATE, logging.WARNING, "refusal"),
    events.SessionShed: _Line("closecodes.session.shed", _GATE, logging.WARNING, "refusal"),
    events.GateSaturated: _Line("closecodes.gate.saturated", _GATE, logging.WARNING),
    events.GateRecovered: _Line("closecodes.gate.recovered", _GATE, logging.INFO),
    events.DrainStarted: _Line("closecodes.drain.started", _GATE, logging.INFO),
    events.DrainFinished: _Line("closecodes.drain.finished", _GATE, logging.INFO),
    events.ClusterAway: _Line("closecodes.cluster.away", _GATE, logging.WARNING),
    events.ClusterFallback: _Line("closecodes.cluster.fallback", _GATE, logging.WARNING),
    events.ClusterBack: _Line("closecodes.cluster.back", _GATE, logging.INFO),
    events.ClusterLearning: _Line("closecodes.cluster.learning", _GATE, logging.WARNING),
    events.ClusterMisconfigured: _Line("closecodes.cluster.misconfigured", _GATE, logging.WARNING),
    events.SessionOpened: _Line("closecodes.session.opened", _SESSION, logging.DEBUG),
    events.SessionClosed: _Line("closecodes.session.closed", _SESSION, logging.DEBUG),
    events.LimitsSet: _Line("closecodes.config.limits", _CONFIG, logging.INFO),
    events.SettingIgnored: _Line("closecodes.config.ignored", _CONFIG, logging.WARNING),
    events.SignalLeftAlone: _Line("closecodes.drain.unavailable", _CONFIG, logging.WARNING),
}
"""What is not here is not logged."""


def _level_of(event: events.Event, line: _Line) -> int:
    # One client at its own limit is that client's affair, a drain is wanted; a process at its limit is the operator's.
    if isinstance(event, (events.SessionRefused, events.SessionShed)) and event.cause in events.NOT_OVERLOAD:
        return logging.INFO
    return line.level


def _kind_of(event: events.Event) -> Key:
    """Return what is equal for events of which a few are as good as all."""
    name = _LINES[type(event)].name
    match event:
        case events.SessionFailed():
            return name, event.fingerprint
        case events.SessionRefused():
            return name, (event.gate, event.cause, event.mode == "shadow")
        case events.SessionShed():
            return name, event.cause
        case events.GateFailed():
            return name, (event.gate, event.step, type(event.exception))
        case events.CloseFailed():
            return name, (event.session.route, type(event.exception))
        case events.CloseRepaired():
            return name, event.session.route
        case events.CallbackFailed():
            return name, (event.callback, type(event.exception))
        case _:
            return name, None


_IN_SUMMARIES = (
    "closecodes.error.fingerprint",
    "closecodes.gate.name",
    "closecodes.gate.cause",
    "closecodes.refusal.mode",
    "closecodes.callback",
    "websocket.close.code",
)
"""Keys of a record that the summary of its kind has too."""


class _Told(NamedTuple):
    """What a record says: a message, its arguments, and the keys; a key whose value is None is left out."""

    message: str
    arguments: tuple[object, ...]
    keys: dict[str, Any]


class _Kind(NamedTuple):
    """What the summary of those that were counted tells of them."""

    line: _Line
    level: int
    first: str
    keys: dict[str, Any]


class LogObserver:
    """Writes each event to the standard library's logging, or counts it where there are too many of its kind.

    :param path: how ``url.path`` is logged: with what looks like a token masked, as it came, or not at all.
    :param client: how ``client.address`` is logged: whole, cut to its network, hashed, or not at all.
    :param burst: equal errors that are written at once, None for all; of all kinds together five times as many.
    :param per_minute: equal errors that are written a minute after that, None for all; of all kinds 60 times as many.
    :param report: told what was counted instead of written.
    """

    WRITTEN = _LINES.keys()
    """The events that it is for."""

    def __init__(
        self,
        *,
        path: Literal["redacted", "raw", "off"] = "redacted",
        client: Literal["full", "truncated", "hashed", "off"] = "full",
        burst: int | None = 10,
        per_minute: float | None = 10.0,
        report: Callable[[events.Event], None] | None = None,
    ) -> None:
        self._report = report
        self._limits: object = None
        self._storms: dict[_Sampler, Storms[_Kind]] = {
            "error": Storms(Unlimited),
            "refusal": Storms(lambda: Window(5, 10.0)),
        }
        self.follow(path=path, client=client, burst=burst, per_minute=per_minute)

    def follow(
        self,
        *,
        path: Literal["redacted", "raw", "off"],
        client: Literal["full", "truncated", "hashed", "off"],
        burst: int | None,
        per_minute: float | None,
    ) -> None:
        """Change how events are written; what was counted stays counted."""
        self._path = path
        self._client = client
        if self._limits == (burst, per_minute):
            return  # what is left of them stays
        self._limits = burst, per_minute
        if burst is None or per_minute is None:
            self._storms["error"].limit(Unlimited)
        else:
            per_minute = max(per_minute, _ALMOST_NONE)
            self._storms["error"].limit(lambda: Rate(per_minute / 60, burst), Rate(per_minute, burst * 5))

    def __call__(self, event: events.Event) -> None:
        """Write ``event``, or count it."""
        line = _LINES.get(type(event))
        if line is None or not line.logger.isEnabledFor(level := _level_of(event, line)):
            return
        suppressed: dict[str, Any] = {}
        if line.sampler is not None:
            count = self._storms[line.sampler].take(_kind_of(event), lambda: self._described(event, line, level))
            if count is None:
                if self._report is not None:
                    self._report(events.LogsSuppressed(line.name, 1))
                return
            suppressed = {f"closecodes.{line.sampler}.suppressed": count}
        told = _told(event, self)
        told.keys.update(suppressed)
        _log(line.logger, level, line.name, told, getattr(event, "exception", None))

    @property
    def is_detailed(self) -> bool:
        """Whether it is written how each session goes, and not only what is wrong."""
        return _SESSION.isEnabledFor(logging.DEBUG)

    @property
    def has_unsaid(self) -> bool:
        """Whether there are counts for :meth:`sum_up` to write."""
        return any(storms.has_unsaid for storms in self._storms.values())

    def sum_up(self, *, now: bool = False) -> None:
        """Write what was counted instead of written.

        :param now: at once; else when it is 30 s old.
        """
        for sampler, storms in self._storms.items():
            for kind, is_rest, count in storms.summary(now=now):
                keys = {
                    "closecodes.suppressed.event": kind.line.name,
                    f"closecodes.{sampler}.suppressed": count,
                    **({} if is_rest else kind.keys),
                }
                what = "other kinds of " + kind.line.name if is_rest else kind.first
                told = _Told("%d more were counted, not written: %s", (count, what), keys)
                _log(kind.line.logger, kind.level, f"closecodes.{sampler}s.suppressed", told)

    def _described(self, event: events.Event, line: _Line, level: int) -> _Kind:
        message, arguments, keys = _told(event, self)
        return _Kind(line, level, message % arguments, {key: keys[key] for key in _IN_SUMMARIES if key in keys})

    def path(self, session: events.SessionFacts) -> str | None:
        """Return the path of ``session`` as it may be logged."""
        match self._path:
            case "redacted":
                return safe_path(session.path)
            case "raw":
                return raw_path(session.path)
            case "off":
                return None

    def keys(self, session: events.SessionFacts) -> dict[str, Any]:
        """Return the keys that all records of ``session`` have."""
        address, port = session.client or (None, None)
        client = None if address is None else safe_client(str(address), self._client)
        return {
            "closecodes.session.id": session.id,
            "http.route": session.route,
            "url.path": self.path(session),
            "url.scheme": session.scheme,
            "network.protocol.name": "websocket",
            "client.address": client,
            "client.port": port if client is not None and self._client == "full" else None,
        }


def _log(logger: logging.Logger, level: int, name: str, told: _Told, exception: BaseException | None = None) -> None:
    extra = {"event.name": name, **_context(), **{key: value for key, value in told.keys.items() if value is not None}}
    exc_info = None if exception is None else (type(exception), exception, exception.__traceback__)
    logger.log(level, told.message, *told.arguments, exc_info=exc_info, extra=extra)


def _context() -> dict[str, str]:
    """Return what ties a record to others, where the application uses OpenTelemetry or asgi-correlation-id."""
    found = {}
    if (current_span := getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)) is not None:
        span = current_span().get_span_context()
        if span.is_valid:
            found = {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
    correlation = getattr(sys.modules.get("asgi_correlation_id.context"), "correlation_id", None)
    if correlation is not None and (identifier := correlation.get()) is not None:
        found["correlation_id"] = one_line(str(identifier))[:128]
    return found


def _place(session_keys: dict[str, Any]) -> str:
    """Return where a session happens, for people: its route, else its path."""
    route = session_keys["http.route"]
    return one_line(route) if route else session_keys["url.path"] or "unknown route"


def _close_keys(close: Close | None) -> dict[str, Any]:
    if close is None:
        return {}
    return {"websocket.close.code": int(close.code), "websocket.close.reason": one_line(close.reason)}


def _course_keys(session: events.SessionFacts) -> dict[str, Any]:
    return {
        "closecodes.session.duration": round(session.duration, 6),
        "closecodes.session.messages.received": session.received,
        "closecodes.session.messages.sent": session.sent,
    }


@functools.singledispatch
def _told(event: object, _observer: LogObserver) -> _Told:
    raise TypeError(f"there are no words for {type(event).__name__}: each event in _LINES needs some")


@_told.register
def _(event: events.SessionFailed, observer: LogObserver) -> _Told:
    session = observer.keys(event.session)
    kind = type_name(type(event.exception))
    keys = {
        # The most telling ones first: Sentry keeps ten.
        "closecodes.error.id": event.error_id,
        "closecodes.error.fingerprint": event.fingerprint,
        "closecodes.error.phase": event.session.phase,
        **_close_keys(event.close),
        "websocket.close.sent": event.close_sent,
        **session,
        **_course_keys(event.session),
    }
    message = "%s in the WebSocket handler of %s; close code %d; ref=%s"
    return _Told(message, (kind, _place(session), event.close.code, event.error_id), keys)


@_told.register
def _(event: events.CloseFailed, observer: LogObserver) -> _Told:
    session = observer.keys(event.session)
    if event.exception is None:
        problem = "the server did not take it in time: the peer does not read"
    else:
        problem = f"the server raised {type_name(type(event.exception))}"
    keys = {**session, **_close_keys(event.close), "websocket.close.sent": False}
    return _Told(
        "close code %d could not be sent for %s: %s",
        (event.close.code, _place(session), problem),
        keys,
    )


@_told.register
def _(event: events.CloseRepaired, observer: LogObserver) -> _Told:
    session = observer.keys(event.session)
    asked = one_line(repr(event.asked)[:80])
    return _Told(
        "the handler of %s closed with %s, which may not be sent; sent %d instead",
        (_place(session), asked, event.close.code),
        {**session, **_close_keys(event.close)},
    )


@_told.register
def _(event: events.GateFailed, observer: LogObserver) -> _Told:
    if event.step == "release":
        outcome = "its place may not be free again"
    else:
        outcome = "the session was admitted past it" if event.admitted else "the session was refused"
    return _Told(
        "the gate %s failed (%s) with %s; %s",
        (event.gate, event.step, type_name(type(event.exception)), outcome),
        {**observer.keys(event.session), "closecodes.gate.name": event.gate},
    )


@_told.register
def _(event: events.CallbackFailed, observer: LogObserver) -> _Told:
    callback = one_line(event.callback)
    session = observer.keys(event.session) if event.session else {}
    return _Told(
        "%s failed with %s",
        (callback, type_name(type(event.exception))),
        {**session, "closecodes.callback": callback},
    )


@_told.register
def _(event: events.SessionRefused, observer: LogObserver) -> _Told:
    session = observer.keys(event.session)
    keys = {
        "closecodes.gate.name": event.gate,
        "closecodes.gate.cause": event.cause,
        "closecodes.gate.usage": event.usage,
        "closecodes.gate.limit": event.limit,
        "closecodes.refusal.mode": event.mode,
        "closecodes.refusal.retry_after": round(event.retry_after, 1),
        **_close_keys(None if event.mode == "shadow" else event.close),
        **session,
    }
    if event.mode == "shadow":
        return _Told("would have refused a session of %s: %s (%s)", (_place(session), event.gate, event.cause), keys)
    message = "refused a session of %s: %s (%s); retry after %.1f s"
    return _Told(message, (_place(session), event.gate, event.cause, event.retry_after), keys)


@_told.register
def _(event: events.SessionShed, observer: LogObserver) -> _Told:
    session = observer.keys(event.session)
    return _Told(
        "shed a session of %s: %s; close code %d; retry after %.1f s",
        (_place(session), event.cause, event.close.code, event.retry_after),
        {
            "closecodes.gate.cause": event.cause,
            "closecodes.refusal.retry_after": round(event.retry_after, 1),
            **_close_keys(event.close),
            **session,
            **_course_keys(event.session),
        },
    )


@_told.register
def _(event: events.GateSaturated, observer: LogObserver) -> _Told:
    del observer
    return _Told(
        "the gate %s refuses sessions (%s)",
        (event.gate, event.cause),
        {
            "closecodes.gate.name": event.gate,
            "closecodes.gate.cause": event.cause,
            "closecodes.gate.usage": event.usage,
            "closecodes.gate.limit": event.limit,
        },
    )


@_told.register
def _(event: events.GateRecovered, observer: LogObserver) -> _Told:
    del observer
    return _Told(
        "the gate %s refuses nobody any more (%s); it refused %d in %.1f s",
        (event.gate, event.cause, event.refused, event.duration),
        {
            "closecodes.gate.name": event.gate,
            "closecodes.gate.cause": event.cause,
            "closecodes.gate.refused": event.refused,
            "closecodes.gate.duration": round(event.duration, 3),
        },
    )


@_told.register
def _(event: events.SessionOpened, observer: LogObserver) -> _Told:
    session = observer.keys(event.session)
    return _Told("opened %s", (_place(session),), session)


@_told.register
def _(event: events.SessionClosed, observer: LogObserver) -> _Told:
    session = observer.keys(event.session)
    keys = {
        "closecodes.session.initiator": event.initiator,
        **_close_keys(event.close),
        **session,
        **_course_keys(event.session),
    }
    code = "none" if event.close is None else str(int(event.close.code))
    return _Told("closed %s by the %s; close code %s", (_place(session), event.initiator, code), keys)


@_told.register
def _(event: events.DrainStarted, observer: LogObserver) -> _Told:
    del observer
    return _Told(
        "draining %d sessions over %.1f s; new ones are refused with 1012",
        (event.sessions, event.window),
        {"closecodes.drain.sessions": event.sessions, "closecodes.drain.window": event.window},
    )


@_told.register
def _(event: events.DrainFinished, observer: LogObserver) -> _Told:
    del observer
    return _Told(
        "drained %d sessions in %.1f s",
        (event.sessions, event.duration),
        {"closecodes.drain.sessions": event.sessions, "closecodes.drain.duration": round(event.duration, 3)},
    )


@_told.register
def _(event: events.SignalLeftAlone, observer: LogObserver) -> _Told:
    del observer
    return _Told(
        "drain_on_sigterm has no effect: %s; drain before the signal instead, "
        "from an endpoint that awaits guard.drain() and that preStop or ExecStop calls",
        (event.reason,),
        {},
    )


@_told.register
def _(event: events.LimitsSet, observer: LogObserver) -> _Told:
    del observer
    text = ", ".join(f"{name}={value}" for name, value in event.limits.items() if value is not None)
    return _Told(
        "limits %s: %s",
        ("changed" if event.changed else "set", text or "none"),
        {f"closecodes.limit.{name}": value for name, value in event.limits.items()},
    )


@_told.register
def _(event: events.SettingIgnored, observer: LogObserver) -> _Told:
    del observer
    name = one_line(event.name)
    return _Told(
        "%s is no setting and was ignored%s",
        (name, f"; did you mean {event.nearest}?" if event.nearest else ""),
        {"closecodes.config.name": name},
    )


@_told.register
def _(event: events.ClusterAway, observer: LogObserver) -> _Told:
    del observer
    problem = one_line(event.problem)
    keys = {
        "closecodes.cluster.name": event.name,
        "closecodes.cluster.problem": problem,
        "closecodes.cluster.lease": round(event.lease, 1),
        "closecodes.cluster.fallback": event.fallback,
    }
    message = "the Redis of the cluster limit %s is away: %s; the lease lasts %.1f s more, then fallback=%s"
    return _Told(message, (event.name, problem, event.lease, event.fallback), keys)


@_told.register
def _(event: events.ClusterFallback, observer: LogObserver) -> _Told:
    del observer
    return _Told(
        "the lease of the cluster limit %s has ended: fallback=%s until Redis is back",
        (event.name, event.fallback),
        {"closecodes.cluster.name": event.name, "closecodes.cluster.fallback": event.fallback},
    )


@_told.register
def _(event: events.ClusterBack, observer: LogObserver) -> _Told:
    del observer
    return _Told(
        "the Redis of the cluster limit %s is back after %.1f s; %d syncs failed",
        (event.name, event.duration, event.failures),
        {
            "closecodes.cluster.name": event.name,
            "closecodes.cluster.failures": event.failures,
            "closecodes.cluster.duration": round(event.duration, 1),
        },
    )


@_told.register
def _(event: events.ClusterLearning, observer: LogObserver) -> _Told:
    del observer
    return _Told(
        "the Redis of the cluster limit %s has lost what it knew: nobody gets more places for %.1f s",
        (event.name, event.duration),
        {"closecodes.cluster.name": event.name, "closecodes.cluster.duration": round(event.duration, 1)},
    )


@_told.register
def _(event: events.ClusterMisconfigured, observer: LogObserver) -> _Told:
    del observer
    problem = one_line(event.problem)
    return _Told(
        "the cluster limit %s: %s",
        (event.name, problem),
        {"closecodes.cluster.name": event.name, "closecodes.cluster.problem": problem},
    )
