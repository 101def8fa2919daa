"""Log records of events: name, logger, level, message and keys."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

from asgi_closecodes import events
from asgi_closecodes.codes import Close
from asgi_closecodes.error_identity import type_name
from asgi_closecodes.naming import shown

from .redaction import one_line, raw_path, safe_client, safe_path

# No handler is installed, not even a NullHandler: with one, an application that configures no
# logging would lose its tracebacks; without one, Python prints warnings and errors to stderr.
_ERROR = logging.getLogger("asgi_closecodes.error")

_GATE = logging.getLogger("asgi_closecodes.gate")

SESSION = logging.getLogger("asgi_closecodes.session")

_CONFIG = logging.getLogger("asgi_closecodes.config")

Sampler: TypeAlias = Literal["error", "refusal", "saturation"]

SUMMARIES: dict[Sampler, str] = {sampler: f"closecodes.{sampler}s.suppressed" for sampler in get_args(Sampler)}
"""Event names of summaries of suppressed records."""

SUPPRESSED: dict[Sampler, str] = {sampler: f"closecodes.{sampler}.suppressed" for sampler in get_args(Sampler)}
"""Keys of the counts of suppressed records."""


class Line(NamedTuple):
    """Log record of one class of events."""

    name: str
    logger: logging.Logger
    level: int | Callable[[Any], int]
    sampler: Sampler | None
    """Sampler that may suppress it; None writes every record."""
    group_by: Callable[[Any], Hashable]
    """Return a key that is equal for events of one kind, see :class:`LogSampler`."""
    keys: tuple[str, ...]
    """Keys that every record has."""
    describe: Callable[[Any, Redactor], Message]

    def level_of(self, event: events.Event) -> int:
        """Return the log level of ``event``."""
        return self.level(event) if callable(self.level) else self.level


LINES: dict[type[events.Event], Line] = {}
"""Log records by class of event."""


class Message(NamedTuple):
    """Message, arguments and keys of a record. Keys whose value is None are left out."""

    message: str
    arguments: tuple[object, ...]
    keys: dict[str, Any]


class Redactor:
    """Redact the keys of a session.

    :param path: ``url.path`` with tokens masked, raw, or not at all.
    :param client: ``client.address`` in full, truncated to its network, hashed, or not at all.
    """

    def __init__(
        self, path: Literal["redacted", "raw", "off"], client: Literal["full", "truncated", "hashed", "off"]
    ) -> None:
        self._path = path
        self._client = client

    def path(self, session: events.SessionFacts) -> str | None:
        """Return the redacted path of ``session``, or None."""
        match self._path:
            case "redacted":
                return safe_path(session.path)
            case "raw":
                return raw_path(session.path)
            case "off":
                return None

    def keys(self, session: events.SessionFacts) -> dict[str, Any]:
        """Return the keys of all records of ``session``."""
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


def _route_of(session_keys: dict[str, Any]) -> str:
    """Return the route of a session, else its path."""
    route = session_keys["http.route"]
    return one_line(route) if route else session_keys["url.path"] or "unknown route"


def _close_keys(close: Close | None) -> dict[str, Any]:
    if close is None:
        return {}
    return {"websocket.close.code": int(close.code), "websocket.close.reason": one_line(close.reason)}


def _close_text(close: Close | None) -> str:
    return "no close code" if close is None else f"close code {int(close.code)}"


def _stats_keys(session: events.SessionFacts) -> dict[str, Any]:
    return {
        "closecodes.session.duration": round(session.duration, 6),
        "closecodes.session.messages.received": session.received,
        "closecodes.session.messages.sent": session.sent,
    }


_SESSION_KEYS = ("closecodes.session.id", "url.scheme", "network.protocol.name")
_CLOSE_KEYS = ("websocket.close.code", "websocket.close.reason")
_STATS_KEYS = (
    "closecodes.session.duration",
    "closecodes.session.messages.received",
    "closecodes.session.messages.sent",
)

_Event = TypeVar("_Event", bound=events.Event)
_Describe: TypeAlias = Callable[[_Event, Redactor], Message]


def _record(
    kind: type[_Event],
    logger: logging.Logger,
    level: int | Callable[[_Event], int],
    *,
    sampler: Sampler | None = None,
    group_by: Callable[[_Event], Hashable] = lambda _event: None,
    keys: tuple[str, ...] = (),
) -> Callable[[_Describe[_Event]], _Describe[_Event]]:
    """Register a function that returns the message and the keys of an event; see :class:`Line`."""

    def register(describe: _Describe[_Event]) -> _Describe[_Event]:
        LINES[kind] = Line(kind.event_name, logger, level, sampler, group_by, keys, describe)
        return describe

    return register


def _severity(event: events.SessionRefused | events.SessionShed) -> int:
    """Return WARNING for limits of the process, INFO for those of one client and for a drain.

    Only the limits of the process need the operator.
    """
    return logging.WARNING if event.is_overload else logging.INFO


@_record(
    events.SessionFailed,
    _ERROR,
    logging.ERROR,
    sampler="error",
    group_by=lambda event: event.fingerprint,
    keys=(
        *_SESSION_KEYS,
        *_STATS_KEYS,
        "websocket.close.sent",
        "closecodes.error.id",
        "closecodes.error.fingerprint",
        "closecodes.error.phase",
    ),
)
def _session_failed(event: events.SessionFailed, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    kind = type_name(type(event.exception))
    keys = {
        # The most important first: Sentry keeps ten.
        "closecodes.error.id": event.error_id,
        "closecodes.error.fingerprint": event.fingerprint,
        "closecodes.error.phase": event.session.phase,
        **_close_keys(event.close),
        "websocket.close.sent": event.close_sent,
        **session,
        **_stats_keys(event.session),
    }
    source = " (out of another session's socket)" if event.of_another_session else ""
    message = "%s%s in the WebSocket handler of %s; %s; ref=%s"
    return Message(message, (kind, source, _route_of(session), _close_text(event.close), event.error_id), keys)


@_record(
    events.SessionClosedWithError,
    SESSION,
    logging.WARNING,
    sampler="error",
    group_by=lambda event: (event.session.route, event.close.code),
    keys=(*_SESSION_KEYS, *_CLOSE_KEYS),
)
def _session_closed_with_error(event: events.SessionClosedWithError, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    message = "the framework closed a session of %s because of an error; %s"
    return Message(message, (_route_of(session), _close_text(event.close)), {**session, **_close_keys(event.close)})


@_record(events.RouteNotFound, SESSION, logging.INFO, sampler="refusal", keys=(*_SESSION_KEYS,))
def _route_not_found(event: events.RouteNotFound, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    return Message("no route for %s", (_route_of(session),), session)


@_record(
    events.CloseFailed,
    _ERROR,
    logging.WARNING,
    sampler="error",
    group_by=lambda event: (event.session.route, event.exception and type_name(type(event.exception))),
    keys=(*_SESSION_KEYS, *_CLOSE_KEYS, "websocket.close.sent"),
)
def _close_failed(event: events.CloseFailed, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    if event.exception is None:
        problem = "the server timed out: the peer does not read"
    else:
        problem = f"the server raised {type_name(type(event.exception))}"
    keys = {**session, **_close_keys(event.close), "websocket.close.sent": False}
    return Message(
        "close code %d could not be sent for %s: %s",
        (event.close.code, _route_of(session), problem),
        keys,
    )


@_record(
    events.CloseRepaired,
    _ERROR,
    logging.WARNING,
    sampler="error",
    group_by=lambda event: event.gate or event.session.route,
    keys=(*_SESSION_KEYS, *_CLOSE_KEYS),
)
def _close_repaired(event: events.CloseRepaired, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    who = f"the handler of {_route_of(session)}" if event.gate is None else f"gate {event.gate}"
    # For a refusal it is already a safe text.
    asked = event.asked if event.gate is not None and isinstance(event.asked, str) else shown(event.asked)
    return Message(
        "%s closed with %s, which must not be sent; sent %d %s instead",
        (who, one_line(asked), event.close.code, one_line(event.close.reason)),
        {**session, "closecodes.gate.name": event.gate, **_close_keys(event.close)},
    )


@_record(
    events.GateFailed,
    _ERROR,
    logging.ERROR,
    sampler="error",
    group_by=lambda event: (event.gate, event.step, type_name(type(event.exception))),
    keys=(*_SESSION_KEYS, "closecodes.gate.name"),
)
def _gate_failed(event: events.GateFailed, redactor: Redactor) -> Message:
    if event.step == "release":
        outcome = "its permit may leak"
    else:
        outcome = "the session was admitted" if event.admitted else "the session was refused"
    return Message(
        "gate %s failed in %s with %s; %s",
        (event.gate, event.step, type_name(type(event.exception)), outcome),
        {**redactor.keys(event.session), "closecodes.gate.name": event.gate},
    )


@_record(
    events.CallbackFailed,
    _ERROR,
    logging.ERROR,
    sampler="error",
    group_by=lambda event: (event.callback, type_name(type(event.exception))),
    keys=("closecodes.callback",),
)
def _callback_failed(event: events.CallbackFailed, redactor: Redactor) -> Message:
    callback = one_line(event.callback)
    session = redactor.keys(event.session) if event.session else {}
    return Message(
        "%s failed with %s",
        (callback, type_name(type(event.exception))),
        {**session, "closecodes.callback": callback},
    )


@_record(
    events.BackgroundFailed,
    _ERROR,
    logging.ERROR,
    sampler="error",
    group_by=lambda event: (event.task, type_name(type(event.exception))),
)
def _background_failed(event: events.BackgroundFailed, _redactor: Redactor) -> Message:
    return Message("background work failed: %s", (event.task,), {})


@_record(events.SensorUnknown, _GATE, logging.WARNING, keys=("closecodes.gate.cause",))
def _sensor_unknown(event: events.SensorUnknown, _redactor: Redactor) -> Message:
    return Message(
        "sensor %s is unavailable: %s; its gate admits every session",
        (event.sensor, one_line(event.problem)),
        {"closecodes.gate.cause": event.sensor},
    )


@_record(
    events.SessionRefused,
    _GATE,
    _severity,
    sampler="refusal",
    group_by=lambda event: (event.gate, event.cause, event.mode),
    keys=(
        *_SESSION_KEYS,
        "closecodes.gate.name",
        "closecodes.gate.cause",
        "closecodes.refusal.mode",
        "closecodes.refusal.retry_after",
    ),
)
def _session_refused(event: events.SessionRefused, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
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
        what = "refused" if event.session.phase == "connecting" else "closed"
        message = "would have %s a session of %s: %s (%s)"
        return Message(message, (what, _route_of(session), event.gate, event.cause), keys)
    hint = "; log_stalls names the line that blocks" if event.cause == "lag" else ""
    retry = f"; retry after {event.retry_after:.1f} s" if event.retry_after else ""
    return Message(
        "refused a session of %s: %s (%s)%s", (_route_of(session), event.gate, event.cause, retry + hint), keys
    )


@_record(
    events.SessionShed,
    _GATE,
    _severity,
    sampler="refusal",
    group_by=lambda event: (event.cause, event.close and event.close.code),  # the summary has the first one's code
    keys=(*_SESSION_KEYS, *_STATS_KEYS, "closecodes.gate.cause"),
)
def _session_shed(event: events.SessionShed, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    route = _route_of(session)
    what = f"drained a session of {route}" if event.cause == "drain" else f"shed a session of {route}: {event.cause}"
    hint = None if event.retry_after is None else round(event.retry_after, 1)
    return Message(
        "%s; %s%s",
        (what, _close_text(event.close), "" if hint is None else f"; retry after {hint} s"),
        {
            "closecodes.gate.cause": event.cause,
            "closecodes.refusal.retry_after": hint,
            **_close_keys(event.close),
            **session,
            **_stats_keys(event.session),
        },
    )


@_record(events.SessionAbandoned, _GATE, logging.WARNING, sampler="refusal", keys=(*_SESSION_KEYS, *_STATS_KEYS))
def _session_abandoned(event: events.SessionAbandoned, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    return Message(
        "abandoned a session of %s: the server still holds its connection %.1f s after the close",
        (_route_of(session), event.after),
        {**_close_keys(event.close), **session, **_stats_keys(event.session)},
    )


@_record(
    events.LoopStalled,
    SESSION,
    logging.WARNING,
    sampler="error",
    group_by=lambda event: event.fingerprint,
    keys=("closecodes.stall.duration", "closecodes.stall.fingerprint", "closecodes.stall.looks"),
)
def _loop_stalled(event: events.LoopStalled, redactor: Redactor) -> Message:
    session = {} if event.session is None else redactor.keys(event.session)
    keys = {
        "closecodes.stall.duration": round(event.duration, 3),
        "closecodes.stall.fingerprint": event.fingerprint,
        "closecodes.stall.looks": event.looks,
        "code.file.path": event.file,
        "code.line.number": event.line,
        "code.function.name": event.function,
        "code.stacktrace": event.stack or None,
        **session,
    }
    if event.file is None:
        message = "the event loop stood still for %.2f s in no code of its own: a thread held the GIL, or CPU was short"
        return Message(message, (event.duration,), keys)
    where = f" of {_route_of(session)}" if session else ""
    position = f"{one_line(event.file)}:{event.line} in {one_line(event.function or '?')}"
    return Message("the event loop stood still for %.2f s at %s%s", (event.duration, position, where), keys)


@_record(
    events.GateSaturated,
    _GATE,
    logging.WARNING,
    sampler="saturation",
    group_by=lambda event: (event.gate, event.cause),
    keys=("closecodes.gate.name", "closecodes.gate.cause"),
)
def _gate_saturated(event: events.GateSaturated, _redactor: Redactor) -> Message:
    return Message(
        "gate %s saturated: %s",
        (event.gate, event.cause),
        {
            "closecodes.gate.name": event.gate,
            "closecodes.gate.cause": event.cause,
            "closecodes.gate.usage": event.usage,
            "closecodes.gate.limit": event.limit,
        },
    )


@_record(
    events.GateRecovered,
    _GATE,
    logging.INFO,
    sampler="saturation",
    group_by=lambda event: (event.gate, event.cause),
    keys=("closecodes.gate.name", "closecodes.gate.cause", "closecodes.gate.refused", "closecodes.gate.duration"),
)
def _gate_recovered(event: events.GateRecovered, _redactor: Redactor) -> Message:
    return Message(
        "gate %s recovered: %s; it refused %d in %.1f s",
        (event.gate, event.cause, event.refused, event.duration),
        {
            "closecodes.gate.name": event.gate,
            "closecodes.gate.cause": event.cause,
            "closecodes.gate.refused": event.refused,
            "closecodes.gate.duration": round(event.duration, 3),
        },
    )


@_record(
    events.SheddingFutile,
    _GATE,
    logging.WARNING,
    keys=("closecodes.gate.name", "closecodes.gate.cause", "closecodes.gate.shed"),
)
def _shedding_futile(event: events.SheddingFutile, _redactor: Redactor) -> Message:
    return Message(
        "gate %s stopped shedding: %s; %d shed sessions freed hardly any memory; it keeps refusing new ones; "
        "look for a leak or raise the limit",
        (event.gate, event.cause, event.shed),
        {
            "closecodes.gate.name": event.gate,
            "closecodes.gate.cause": event.cause,
            "closecodes.gate.usage": event.usage,
            "closecodes.gate.limit": event.limit,
            "closecodes.gate.shed": event.shed,
        },
    )


@_record(events.SessionOpened, SESSION, logging.DEBUG, keys=(*_SESSION_KEYS,))
def _session_opened(event: events.SessionOpened, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    return Message("opened %s", (_route_of(session),), session)


@_record(
    events.SessionClosed, SESSION, logging.DEBUG, keys=(*_SESSION_KEYS, *_STATS_KEYS, "closecodes.session.closed_by")
)
def _session_closed(event: events.SessionClosed, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    keys = {
        "closecodes.session.closed_by": event.closed_by,
        **_close_keys(event.close),
        **session,
        **_stats_keys(event.session),
    }
    code = "none" if event.close is None else str(int(event.close.code))
    return Message("closed %s by the %s; close code %s", (_route_of(session), event.closed_by, code), keys)


@_record(
    events.DrainStarted,
    _GATE,
    logging.INFO,
    keys=("closecodes.drain.sessions", "closecodes.drain.window", "closecodes.drain.patience"),
)
def _drain_started(event: events.DrainStarted, _redactor: Redactor) -> Message:
    patience = f", after up to {event.patience:.1f} s for busy ones" if event.patience else ""
    return Message(
        "draining %d sessions over %.1f s%s; new ones are refused with 1012",
        (event.sessions, event.window, patience),
        {
            "closecodes.drain.sessions": event.sessions,
            "closecodes.drain.window": event.window,
            "closecodes.drain.patience": event.patience,
        },
    )


@_record(
    events.DrainFinished,
    _GATE,
    logging.INFO,
    keys=("closecodes.drain.sessions", "closecodes.drain.duration", "closecodes.drain.busy"),
)
def _drain_finished(event: events.DrainFinished, _redactor: Redactor) -> Message:
    cut = f"; {event.busy} of them were busy: drain_patience waits for such" if event.busy else ""
    return Message(
        "drained %d sessions in %.1f s%s",
        (event.sessions, event.duration, cut),
        {
            "closecodes.drain.sessions": event.sessions,
            "closecodes.drain.duration": round(event.duration, 3),
            "closecodes.drain.busy": event.busy,
        },
    )


@_record(events.SigtermDrainUnavailable, _CONFIG, logging.WARNING)
def _sigterm_drain_unavailable(event: events.SigtermDrainUnavailable, _redactor: Redactor) -> Message:
    return Message(
        "drain_on_sigterm has no effect: %s; let preStop or ExecStop call an endpoint that awaits guard.drain()",
        (event.reason,),
        {},
    )


@_record(events.DrainWindowTooLong, _CONFIG, logging.WARNING)
def _drain_window_too_long(event: events.DrainWindowTooLong, _redactor: Redactor) -> Message:
    return Message(
        "drain_window=%g%s is too long: gunicorn kills its workers %g s after SIGTERM; "
        "set %s lower, or --graceful-timeout higher",
        (
            event.window,
            f" with drain_patience={event.patience:g}" if event.patience else "",
            event.limit,
            "them" if event.patience else "drain_window",
        ),
        {},
    )


@_record(events.LimitsChanged, _CONFIG, logging.INFO)
def _limits_changed(event: events.LimitsChanged, _redactor: Redactor) -> Message:
    text = ", ".join(f"{name}={value}" for name, value in event.limits.items() if value is not None)
    return Message(
        "limits %s: %s",
        ("changed" if event.changed else "set", text or "none"),
        {f"closecodes.limit.{name}": value for name, value in event.limits.items()},
    )


@_record(events.FewFiles, _CONFIG, logging.WARNING, keys=("closecodes.files.open", "closecodes.files.limit"))
def _few_files(event: events.FewFiles, _redactor: Redactor) -> Message:
    return Message(
        "max_sessions=%d does not fit the %d files that this process may open, of which %d are open already; "
        "let it open %d (ulimit -n, LimitNOFILE= of systemd), or lower max_sessions",
        (event.max_sessions, event.limit, event.open, event.needed),
        {
            "closecodes.limit.max_sessions": event.max_sessions,
            "closecodes.files.open": event.open,
            "closecodes.files.limit": event.limit,
        },
    )


@_record(events.SettingIgnored, _CONFIG, logging.WARNING, keys=("closecodes.config.name",))
def _setting_ignored(event: events.SettingIgnored, _redactor: Redactor) -> Message:
    name = one_line(event.name)
    return Message("%s has no effect: %s", (name, event.problem), {"closecodes.config.name": name})


@_record(events.UnknownSetting, _CONFIG, logging.WARNING, keys=("closecodes.config.name",))
def _unknown_setting(event: events.UnknownSetting, _redactor: Redactor) -> Message:
    name = one_line(event.name)
    return Message(
        "unknown setting %s was ignored%s",
        (name, f"; did you mean {event.nearest}?" if event.nearest else ""),
        {"closecodes.config.name": name},
    )


@_record(
    events.ClusterUnreachable,
    _GATE,
    logging.WARNING,
    keys=(
        "closecodes.cluster.name",
        "closecodes.cluster.problem",
        "closecodes.cluster.lease",
        "closecodes.cluster.fallback",
    ),
)
def _cluster_unreachable(event: events.ClusterUnreachable, _redactor: Redactor) -> Message:
    problem = one_line(event.problem)
    keys = {
        "closecodes.cluster.name": event.name,
        "closecodes.cluster.problem": problem,
        "closecodes.cluster.lease": round(event.lease, 1),
        "closecodes.cluster.fallback": event.fallback,
    }
    message = "Redis of cluster limit %s is unreachable: %s; the lease ends in %.1f s, then fallback=%s"
    return Message(message, (event.name, problem, event.lease, event.fallback), keys)


@_record(
    events.ClusterFallback, _GATE, logging.WARNING, keys=("closecodes.cluster.name", "closecodes.cluster.fallback")
)
def _cluster_fallback(event: events.ClusterFallback, _redactor: Redactor) -> Message:
    return Message(
        "lease of cluster limit %s has ended: fallback=%s until Redis is reachable",
        (event.name, event.fallback),
        {"closecodes.cluster.name": event.name, "closecodes.cluster.fallback": event.fallback},
    )


@_record(
    events.ClusterRecovered,
    _GATE,
    logging.INFO,
    keys=("closecodes.cluster.name", "closecodes.cluster.failures", "closecodes.cluster.duration"),
)
def _cluster_recovered(event: events.ClusterRecovered, _redactor: Redactor) -> Message:
    return Message(
        "Redis of cluster limit %s is reachable again after %.1f s; %d syncs failed",
        (event.name, event.duration, event.failures),
        {
            "closecodes.cluster.name": event.name,
            "closecodes.cluster.failures": event.failures,
            "closecodes.cluster.duration": round(event.duration, 1),
        },
    )


@_record(
    events.ClusterRelearning, _GATE, logging.WARNING, keys=("closecodes.cluster.name", "closecodes.cluster.duration")
)
def _cluster_relearning(event: events.ClusterRelearning, _redactor: Redactor) -> Message:
    return Message(
        "Redis of cluster limit %s has lost its data: it grants no permits for %.1f s",
        (event.name, event.duration),
        {"closecodes.cluster.name": event.name, "closecodes.cluster.duration": round(event.duration, 1)},
    )


@_record(
    events.ClusterMisconfigured, _GATE, logging.WARNING, keys=("closecodes.cluster.name", "closecodes.cluster.problem")
)
def _cluster_misconfigured(event: events.ClusterMisconfigured, _redactor: Redactor) -> Message:
    problem = one_line(event.problem)
    return Message(
        "cluster limit %s: %s",
        (event.name, problem),
        {"closecodes.cluster.name": event.name, "closecodes.cluster.problem": problem},
    )
