"""The log line of each event: its name, its logger, its level, its words and its keys."""

from __future__ import annotations

import functools
import logging
from typing import Any, Literal, NamedTuple, TypeAlias

from asgi_closecodes import events
from asgi_closecodes.codes import Close
from asgi_closecodes.error_identity import type_name
from asgi_closecodes.naming import shown

from .redaction import one_line, raw_path, safe_client, safe_path
from .sampling import Key

# No handler is installed, not even a NullHandler: with one, an application that configures no
# logging would lose its tracebacks; without one, Python prints warnings and errors to stderr.
_ERROR = logging.getLogger("asgi_closecodes.error")

_GATE = logging.getLogger("asgi_closecodes.gate")

SESSION = logging.getLogger("asgi_closecodes.session")

_CONFIG = logging.getLogger("asgi_closecodes.config")

Sampler: TypeAlias = Literal["error", "refusal", "saturation"]


class Line(NamedTuple):
    """The log line of one kind of event."""

    name: str
    logger: logging.Logger
    level: int
    sampler: Sampler | None = None
    """Which of the samplers may have it counted instead of written."""


LINES: dict[type, Line] = {
    events.SessionFailed: Line("closecodes.session.exception", _ERROR, logging.ERROR, "error"),
    events.CloseFailed: Line("closecodes.session.close_failed", _ERROR, logging.WARNING, "error"),
    events.CloseRepaired: Line("closecodes.session.close_repaired", _ERROR, logging.WARNING, "error"),
    events.GateFailed: Line("closecodes.gate.failed", _ERROR, logging.ERROR, "error"),
    events.CallbackFailed: Line("closecodes.callback.failed", _ERROR, logging.ERROR, "error"),
    events.SessionRefused: Line("closecodes.session.refused", _GATE, logging.WARNING, "refusal"),
    events.SessionShed: Line("closecodes.session.shed", _GATE, logging.WARNING, "refusal"),
    events.GateSaturated: Line("closecodes.gate.saturated", _GATE, logging.WARNING, "saturation"),
    events.GateRecovered: Line("closecodes.gate.recovered", _GATE, logging.INFO, "saturation"),
    events.DrainStarted: Line("closecodes.drain.started", _GATE, logging.INFO),
    events.DrainFinished: Line("closecodes.drain.finished", _GATE, logging.INFO),
    events.ClusterAway: Line("closecodes.cluster.away", _GATE, logging.WARNING),
    events.ClusterFallback: Line("closecodes.cluster.fallback", _GATE, logging.WARNING),
    events.ClusterBack: Line("closecodes.cluster.back", _GATE, logging.INFO),
    events.ClusterLearning: Line("closecodes.cluster.learning", _GATE, logging.WARNING),
    events.ClusterMisconfigured: Line("closecodes.cluster.misconfigured", _GATE, logging.WARNING),
    events.SessionOpened: Line("closecodes.session.opened", SESSION, logging.DEBUG),
    events.SessionClosed: Line("closecodes.session.closed", SESSION, logging.DEBUG),
    events.RouteNotFound: Line("closecodes.session.not_found", SESSION, logging.INFO, "refusal"),
    events.LimitsSet: Line("closecodes.config.limits", _CONFIG, logging.INFO),
    events.SettingIgnored: Line("closecodes.config.ignored", _CONFIG, logging.WARNING),
    events.SignalLeftAlone: Line("closecodes.drain.unavailable", _CONFIG, logging.WARNING),
}
"""What is not here is not logged."""


def level_of(event: events.Event, line: Line) -> int:
    """Return the level of ``event``, which its cause may lower."""
    # One client at its own limit is that client's affair, a drain is wanted; a process at its limit is the operator's.
    if isinstance(event, (events.SessionRefused, events.SessionShed)) and event.cause in events.NOT_OVERLOAD:
        return logging.INFO
    return line.level


def kind_of(event: events.Event) -> Key:
    """Return what is equal for events of which a few are as good as all."""
    name = LINES[type(event)].name
    match event:
        case events.SessionFailed():
            return name, event.fingerprint
        case events.SessionRefused():
            return name, (event.gate, event.cause, event.mode == "shadow")
        case events.SessionShed():
            return name, event.cause
        case events.GateSaturated() | events.GateRecovered():
            return name, (event.gate, event.cause)
        case events.GateFailed():
            return name, (event.gate, event.step, type_name(type(event.exception)))
        case events.CloseFailed():
            return name, (event.session.route, event.exception and type_name(type(event.exception)))
        case events.CloseRepaired():
            return name, event.gate or event.session.route
        case events.CallbackFailed():
            return name, (event.callback, type_name(type(event.exception)))
        case _:
            return name, None


class Message(NamedTuple):
    """Content of a record: a message, its arguments, and the keys; a key whose value is None is left out."""

    message: str
    arguments: tuple[object, ...]
    keys: dict[str, Any]


class Redactor:
    """Keys of a session that may be logged.

    :param path: ``url.path`` with what looks like a token masked, as it came, or not at all.
    :param client: ``client.address`` whole, cut to its network, hashed, or not at all.
    """

    def __init__(
        self, path: Literal["redacted", "raw", "off"], client: Literal["full", "truncated", "hashed", "off"]
    ) -> None:
        self._path = path
        self._client = client

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


def _place(session_keys: dict[str, Any]) -> str:
    """Return where a session happens, for people: its route, else its path."""
    route = session_keys["http.route"]
    return one_line(route) if route else session_keys["url.path"] or "unknown route"


def _close_keys(close: Close | None) -> dict[str, Any]:
    if close is None:
        return {}
    return {"websocket.close.code": int(close.code), "websocket.close.reason": one_line(close.reason)}


def _close_text(close: Close | None) -> str:
    return "no close code" if close is None else f"close code {int(close.code)}"


def _course_keys(session: events.SessionFacts) -> dict[str, Any]:
    return {
        "closecodes.session.duration": round(session.duration, 6),
        "closecodes.session.messages.received": session.received,
        "closecodes.session.messages.sent": session.sent,
    }


@functools.singledispatch
def describe(event: object, _redactor: Redactor) -> Message:
    """Return what is logged of ``event``."""
    raise TypeError(f"there are no words for {type(event).__name__}: each event in LINES needs some")


@describe.register
def _(event: events.SessionFailed, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
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
    source = " (out of another session's socket)" if event.of_another_session else ""
    message = "%s%s in the WebSocket handler of %s; %s; ref=%s"
    return Message(message, (kind, source, _place(session), _close_text(event.close), event.error_id), keys)


@describe.register
def _(event: events.RouteNotFound, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    return Message("no route for %s", (_place(session),), session)


@describe.register
def _(event: events.CloseFailed, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    if event.exception is None:
        problem = "the server did not take it in time: the peer does not read"
    else:
        problem = f"the server raised {type_name(type(event.exception))}"
    keys = {**session, **_close_keys(event.close), "websocket.close.sent": False}
    return Message(
        "close code %d could not be sent for %s: %s",
        (event.close.code, _place(session), problem),
        keys,
    )


@describe.register
def _(event: events.CloseRepaired, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    who = f"the handler of {_place(session)}" if event.gate is None else f"the gate {event.gate}"
    # Of a refusal it is a text of ours.
    asked = event.asked if event.gate is not None and isinstance(event.asked, str) else shown(event.asked)
    return Message(
        "%s closed with %s, which may not be sent; sent %d %s instead",
        (who, one_line(asked), event.close.code, one_line(event.close.reason)),
        {**session, "closecodes.gate.name": event.gate, **_close_keys(event.close)},
    )


@describe.register
def _(event: events.GateFailed, redactor: Redactor) -> Message:
    if event.step == "release":
        outcome = "its place may not be free again"
    else:
        outcome = "the session was admitted past it" if event.admitted else "the session was refused"
    return Message(
        "the gate %s failed (%s) with %s; %s",
        (event.gate, event.step, type_name(type(event.exception)), outcome),
        {**redactor.keys(event.session), "closecodes.gate.name": event.gate},
    )


@describe.register
def _(event: events.CallbackFailed, redactor: Redactor) -> Message:
    callback = one_line(event.callback)
    session = redactor.keys(event.session) if event.session else {}
    return Message(
        "%s failed with %s",
        (callback, type_name(type(event.exception))),
        {**session, "closecodes.callback": callback},
    )


@describe.register
def _(event: events.SessionRefused, redactor: Redactor) -> Message:
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
        return Message("would have refused a session of %s: %s (%s)", (_place(session), event.gate, event.cause), keys)
    message = "refused a session of %s: %s (%s); retry after %.1f s"
    return Message(message, (_place(session), event.gate, event.cause, event.retry_after), keys)


@describe.register
def _(event: events.SessionShed, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    place = _place(session)
    what = f"drained a session of {place}" if event.cause == "drain" else f"shed a session of {place}: {event.cause}"
    return Message(
        "%s; %s; retry after %.1f s",
        (what, _close_text(event.close), event.retry_after),
        {
            "closecodes.gate.cause": event.cause,
            "closecodes.refusal.retry_after": round(event.retry_after, 1),
            **_close_keys(event.close),
            **session,
            **_course_keys(event.session),
        },
    )


@describe.register
def _(event: events.GateSaturated, _redactor: Redactor) -> Message:
    return Message(
        "the gate %s refuses sessions (%s)",
        (event.gate, event.cause),
        {
            "closecodes.gate.name": event.gate,
            "closecodes.gate.cause": event.cause,
            "closecodes.gate.usage": event.usage,
            "closecodes.gate.limit": event.limit,
        },
    )


@describe.register
def _(event: events.GateRecovered, _redactor: Redactor) -> Message:
    return Message(
        "the gate %s refuses nobody any more (%s); it refused %d in %.1f s",
        (event.gate, event.cause, event.refused, event.duration),
        {
            "closecodes.gate.name": event.gate,
            "closecodes.gate.cause": event.cause,
            "closecodes.gate.refused": event.refused,
            "closecodes.gate.duration": round(event.duration, 3),
        },
    )


@describe.register
def _(event: events.SessionOpened, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    return Message("opened %s", (_place(session),), session)


@describe.register
def _(event: events.SessionClosed, redactor: Redactor) -> Message:
    session = redactor.keys(event.session)
    keys = {
        "closecodes.session.initiator": event.initiator,
        **_close_keys(event.close),
        **session,
        **_course_keys(event.session),
    }
    code = "none" if event.close is None else str(int(event.close.code))
    return Message("closed %s by the %s; close code %s", (_place(session), event.initiator, code), keys)


@describe.register
def _(event: events.DrainStarted, _redactor: Redactor) -> Message:
    return Message(
        "draining %d sessions over %.1f s; new ones are refused with 1012",
        (event.sessions, event.window),
        {"closecodes.drain.sessions": event.sessions, "closecodes.drain.window": event.window},
    )


@describe.register
def _(event: events.DrainFinished, _redactor: Redactor) -> Message:
    return Message(
        "drained %d sessions in %.1f s",
        (event.sessions, event.duration),
        {"closecodes.drain.sessions": event.sessions, "closecodes.drain.duration": round(event.duration, 3)},
    )


@describe.register
def _(event: events.SignalLeftAlone, _redactor: Redactor) -> Message:
    return Message(
        "drain_on_sigterm has no effect: %s; drain before the signal instead, "
        "from an endpoint that awaits guard.drain() and that preStop or ExecStop calls",
        (event.reason,),
        {},
    )


@describe.register
def _(event: events.LimitsSet, _redactor: Redactor) -> Message:
    text = ", ".join(f"{name}={value}" for name, value in event.limits.items() if value is not None)
    return Message(
        "limits %s: %s",
        ("changed" if event.changed else "set", text or "none"),
        {f"closecodes.limit.{name}": value for name, value in event.limits.items()},
    )


@describe.register
def _(event: events.SettingIgnored, _redactor: Redactor) -> Message:
    name = one_line(event.name)
    if event.problem is not None:
        return Message("%s has no effect: %s", (name, event.problem), {"closecodes.config.name": name})
    return Message(
        "%s is no setting and was ignored%s",
        (name, f"; did you mean {event.nearest}?" if event.nearest else ""),
        {"closecodes.config.name": name},
    )


@describe.register
def _(event: events.ClusterAway, _redactor: Redactor) -> Message:
    problem = one_line(event.problem)
    keys = {
        "closecodes.cluster.name": event.name,
        "closecodes.cluster.problem": problem,
        "closecodes.cluster.lease": round(event.lease, 1),
        "closecodes.cluster.fallback": event.fallback,
    }
    message = "the Redis of the cluster limit %s is away: %s; the lease lasts %.1f s more, then fallback=%s"
    return Message(message, (event.name, problem, event.lease, event.fallback), keys)


@describe.register
def _(event: events.ClusterFallback, _redactor: Redactor) -> Message:
    return Message(
        "the lease of the cluster limit %s has ended: fallback=%s until Redis is back",
        (event.name, event.fallback),
        {"closecodes.cluster.name": event.name, "closecodes.cluster.fallback": event.fallback},
    )


@describe.register
def _(event: events.ClusterBack, _redactor: Redactor) -> Message:
    return Message(
        "the Redis of the cluster limit %s is back after %.1f s; %d syncs failed",
        (event.name, event.duration, event.failures),
        {
            "closecodes.cluster.name": event.name,
            "closecodes.cluster.failures": event.failures,
            "closecodes.cluster.duration": round(event.duration, 1),
        },
    )


@describe.register
def _(event: events.ClusterLearning, _redactor: Redactor) -> Message:
    return Message(
        "the Redis of the cluster limit %s has lost what it knew: nobody gets more places for %.1f s",
        (event.name, event.duration),
        {"closecodes.cluster.name": event.name, "closecodes.cluster.duration": round(event.duration, 1)},
    )


@describe.register
def _(event: events.ClusterMisconfigured, _redactor: Redactor) -> Message:
    problem = one_line(event.problem)
    return Message(
        "the cluster limit %s: %s",
        (event.name, problem),
        {"closecodes.cluster.name": event.name, "closecodes.cluster.problem": problem},
    )
