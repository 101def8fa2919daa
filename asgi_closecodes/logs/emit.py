"""Events to log records: the message carries the essentials, flat dotted extras carry the rest.

The exception travels as ``exc_info`` alone, so that each formatter and service renders it its own way.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, Literal

from asgi_closecodes import events
from asgi_closecodes.codes import Close

from .fingerprint import fingerprint, type_name
from .redaction import one_line, raw_path, safe_client, safe_path

# No handler is installed, not even a NullHandler: with one, an application that configures no
# logging would lose its tracebacks; without one, Python prints warnings and errors to stderr.
_ERROR = logging.getLogger("asgi_closecodes.error")
_GATE = logging.getLogger("asgi_closecodes.gate")
_SESSION = logging.getLogger("asgi_closecodes.session")
_CONFIG = logging.getLogger("asgi_closecodes.config")


class LogObserver:
    """Writes each event to the standard library's logging.

    :param path: how ``url.path`` is logged: with what looks like a token masked, as it came, or not at all.
    :param client: how ``client.address`` is logged: whole, cut to its network, hashed, or not at all.
    """

    def __init__(
        self,
        *,
        path: Literal["redacted", "raw", "off"] = "redacted",
        client: Literal["full", "truncated", "hashed", "off"] = "full",
    ) -> None:
        self._path = path
        self._client = client

    def __call__(self, event: events.Event) -> None:
        """Write ``event``."""
        _write(event, self)

    def place(self, session: events.SessionFacts) -> str:
        """Return where ``session`` happens, for people: its route, else its path."""
        return one_line(session.route) if session.route else self.path(session) or "unknown route"

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


def _log(
    logger: logging.Logger,
    level: int,
    name: str,
    message: str,
    *arguments: object,
    keys: dict[str, Any],
    exception: BaseException | None = None,
) -> None:
    extra = {"event.name": name, **{key: value for key, value in keys.items() if value is not None}}
    exc_info = None if exception is None else (type(exception), exception, exception.__traceback__)
    logger.log(level, message, *arguments, exc_info=exc_info, extra=extra)


def _close_keys(close: Close | None) -> dict[str, Any]:
    if close is None:
        return {}
    return {"websocket.close.code": int(close.code), "websocket.close.reason": one_line(close.reason)}


@functools.singledispatch
def _write(event: object, observer: LogObserver) -> None:
    """Write one kind of event; what is registered for no kind is not logged."""


@_write.register
def _(event: events.SessionFailed, observer: LogObserver) -> None:
    if not _ERROR.isEnabledFor(logging.ERROR):
        return
    session = event.session
    _log(
        _ERROR,
        logging.ERROR,
        "closecodes.session.exception",
        "%s in the WebSocket handler of %s; close code %d; ref=%s",
        type_name(type(event.exception)),
        observer.place(session),
        event.close.code,
        event.error_id,
        exception=event.exception,
        keys={
            **observer.keys(session),
            **_close_keys(event.close),
            "websocket.close.sent": event.close_sent,
            "closecodes.error.id": event.error_id,
            "closecodes.error.fingerprint": fingerprint(event.exception),
            "closecodes.error.phase": session.phase,
            "closecodes.session.duration": round(session.duration, 6),
            "closecodes.session.messages.received": session.received,
            "closecodes.session.messages.sent": session.sent,
        },
    )


@_write.register
def _(event: events.CloseFailed, observer: LogObserver) -> None:
    if event.exception is None:
        problem = "the server did not take it in time: the peer does not read"
    else:
        problem = f"the server raised {type_name(type(event.exception))}"
    _log(
        _ERROR,
        logging.WARNING,
        "closecodes.session.close_failed",
        "close code %d could not be sent for %s: %s",
        event.close.code,
        observer.place(event.session),
        problem,
        exception=event.exception,
        keys={**observer.keys(event.session), **_close_keys(event.close), "websocket.close.sent": False},
    )


@_write.register
def _(event: events.CloseRepaired, observer: LogObserver) -> None:
    _log(
        _ERROR,
        logging.WARNING,
        "closecodes.session.close_repaired",
        "the handler of %s closed with %s, which may not be sent; sent %d instead",
        observer.place(event.session),
        one_line(repr(event.asked)[:80]),
        event.close.code,
        keys={**observer.keys(event.session), **_close_keys(event.close)},
    )


@_write.register
def _(event: events.GateFailed, observer: LogObserver) -> None:
    if event.step == "release":
        outcome = "its place may not be free again"
    else:
        outcome = "the session was admitted past it" if event.admitted else "the session was refused"
    _log(
        _ERROR,
        logging.ERROR,
        "closecodes.gate.failed",
        "the gate %s failed (%s) with %s; %s",
        event.gate,
        event.step,
        type_name(type(event.exception)),
        outcome,
        exception=event.exception,
        keys={**observer.keys(event.session), "closecodes.gate.name": event.gate},
    )


@_write.register
def _(event: events.CallbackFailed, observer: LogObserver) -> None:
    _log(
        _ERROR,
        logging.ERROR,
        "closecodes.callback.failed",
        "%s failed with %s",
        one_line(event.callback),
        type_name(type(event.exception)),
        exception=event.exception,
        keys={
            **(observer.keys(event.session) if event.session else {}),
            "closecodes.callback": one_line(event.callback),
        },
    )


def _level_of(cause: str) -> int:
    # One client at its own limit is that client's affair, a drain is wanted; a process at its limit is the operator's.
    return logging.INFO if cause in {"client", "replaced", "drain"} else logging.WARNING


@_write.register
def _(event: events.SessionRefused, observer: LogObserver) -> None:
    level = _level_of(event.cause)
    if not _GATE.isEnabledFor(level):
        return
    _log(
        _GATE,
        level,
        "closecodes.session.refused",
        "%s a session of %s: %s (%s)%s",
        "would have refused" if event.mode == "shadow" else "refused",
        observer.place(event.session),
        event.gate,
        event.cause,
        "" if event.mode == "shadow" else f"; retry after {event.retry_after:.1f} s",
        keys={
            **observer.keys(event.session),
            **_close_keys(None if event.mode == "shadow" else event.close),
            "closecodes.gate.name": event.gate,
            "closecodes.gate.cause": event.cause,
            "closecodes.gate.usage": event.usage,
            "closecodes.gate.limit": event.limit,
            "closecodes.refusal.mode": event.mode,
            "closecodes.refusal.retry_after": round(event.retry_after, 1),
        },
    )


@_write.register
def _(event: events.SessionShed, observer: LogObserver) -> None:
    _log(
        _GATE,
        _level_of(event.cause),
        "closecodes.session.shed",
        "shed a session of %s: %s; close code %d; retry after %.1f s",
        observer.place(event.session),
        event.cause,
        event.close.code,
        event.retry_after,
        keys={
            **observer.keys(event.session),
            **_close_keys(event.close),
            "closecodes.gate.cause": event.cause,
            "closecodes.refusal.retry_after": round(event.retry_after, 1),
            "closecodes.session.duration": round(event.session.duration, 6),
        },
    )


@_write.register
def _(event: events.SessionOpened, observer: LogObserver) -> None:
    if _SESSION.isEnabledFor(logging.DEBUG):
        _log(
            _SESSION,
            logging.DEBUG,
            "closecodes.session.opened",
            "opened %s",
            observer.place(event.session),
            keys=observer.keys(event.session),
        )


@_write.register
def _(event: events.SessionClosed, observer: LogObserver) -> None:
    if _SESSION.isEnabledFor(logging.DEBUG):
        session = event.session
        _log(
            _SESSION,
            logging.DEBUG,
            "closecodes.session.closed",
            "closed %s by the %s; close code %s",
            observer.place(session),
            event.initiator,
            "none" if event.close is None else event.close.code,
            keys={
                **observer.keys(session),
                **_close_keys(event.close),
                "closecodes.session.initiator": event.initiator,
                "closecodes.session.duration": round(session.duration, 6),
                "closecodes.session.messages.received": session.received,
                "closecodes.session.messages.sent": session.sent,
            },
        )


@_write.register
def _(event: events.DrainStarted, observer: LogObserver) -> None:
    del observer
    _log(
        _GATE,
        logging.INFO,
        "closecodes.drain.started",
        "draining %d sessions over %.1f s; new ones are refused with 1012",
        event.sessions,
        event.window,
        keys={"closecodes.drain.sessions": event.sessions, "closecodes.drain.window": event.window},
    )


@_write.register
def _(event: events.DrainFinished, observer: LogObserver) -> None:
    del observer
    _log(
        _GATE,
        logging.INFO,
        "closecodes.drain.finished",
        "drained %d sessions in %.1f s",
        event.sessions,
        event.duration,
        keys={"closecodes.drain.sessions": event.sessions, "closecodes.drain.duration": round(event.duration, 3)},
    )


@_write.register
def _(event: events.SignalLeftAlone, observer: LogObserver) -> None:
    del observer
    _log(
        _CONFIG,
        logging.WARNING,
        "closecodes.drain.unavailable",
        "drain_on_sigterm has no effect: %s; drain before the signal instead, "
        "from an endpoint that awaits guard.drain() and that preStop or ExecStop calls",
        event.reason,
        keys={},
    )


@_write.register
def _(event: events.LimitsSet, observer: LogObserver) -> None:
    del observer
    text = ", ".join(f"{name}={value}" for name, value in event.limits.items() if value is not None)
    _log(
        _CONFIG,
        logging.INFO,
        "closecodes.config.limits",
        "limits %s: %s",
        "changed" if event.changed else "set",
        text,
        keys={f"closecodes.limit.{name}": value for name, value in event.limits.items()},
    )


@_write.register
def _(event: events.SettingIgnored, observer: LogObserver) -> None:
    del observer
    _log(
        _CONFIG,
        logging.WARNING,
        "closecodes.config.ignored",
        "%s is no setting and was ignored%s",
        one_line(event.name),
        f"; did you mean {event.nearest}?" if event.nearest else "",
        keys={"closecodes.config.name": one_line(event.name)},
    )
