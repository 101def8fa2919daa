"""Log observer: writes events as records with a message and flat dotted extras.

The exception is in ``exc_info`` only: each formatter renders it its own way. ``schema.json`` describes the keys.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from asgi_closecodes import events
from asgi_closecodes.error_identity import is_plain, traceback_of, type_name
from asgi_closecodes.token_bucket import FixedWindow, TokenBucket, Unlimited

from .messages import LINES, SESSION, SUMMARIES, SUPPRESSED, Line, Message, Redactor, Sampler
from .redaction import one_line
from .sampling import LogSampler

_MIN_PER_MINUTE = 1e-9
"""Stands for 0 records a minute: a rate of 0 would block the burst too."""


_MAX_REFUSAL_KINDS = 64
"""Kinds of refusals with limits of their own, 5 records in 10 s each. Names from outside can create kinds."""

_SUMMARY_KEYS = (
    "closecodes.error.fingerprint",
    "closecodes.stall.fingerprint",
    "closecodes.gate.name",
    "closecodes.gate.cause",
    "closecodes.refusal.mode",
    "closecodes.callback",
    "websocket.close.code",
)
"""Keys that a summary copies from the first record of its kind."""


class _Kind(NamedTuple):
    """Content of a summary of suppressed records."""

    line: Line
    level: int
    first: str
    keys: dict[str, Any]


class LogObserver:
    """Log each event; count it instead when there are too many of its kind.

    :param path: log ``url.path`` with tokens masked, raw, or not at all.
    :param client: log ``client.address`` in full, truncated to its network, hashed, or not at all.
    :param burst: equal errors written at once; five times as many of all kinds together. None writes all.
    :param per_minute: equal errors written a minute after that; 60 times as many of all kinds. None writes all.
    :param report: called with an event for each suppressed record.
    :param wake: called when there is something for :meth:`flush_summaries`, after there was nothing.
    """

    WRITTEN = LINES.keys()
    """Events that are logged."""

    def __init__(
        self,
        *,
        path: Literal["redacted", "raw", "off"] = "redacted",
        client: Literal["full", "truncated", "hashed", "off"] = "full",
        burst: int | None = 10,
        per_minute: float | None = 10.0,
        report: Callable[[events.Event], None] | None = None,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        self._report = report
        self._limits: object = None
        self._pending_limits: events.LimitsChanged | None = None
        _instances.add(self)
        self._samplers: dict[Sampler, LogSampler[_Kind]] = {
            "error": LogSampler(Unlimited, wake=wake),
            "refusal": LogSampler(lambda: FixedWindow(5, 10.0), most=_MAX_REFUSAL_KINDS, wake=wake),
            "saturation": LogSampler(lambda: FixedWindow(5, 10.0), most=_MAX_REFUSAL_KINDS, wake=wake),
        }
        self.configure(path=path, client=client, burst=burst, per_minute=per_minute)

    def configure(
        self,
        *,
        path: Literal["redacted", "raw", "off"],
        client: Literal["full", "truncated", "hashed", "off"],
        burst: int | None,
        per_minute: float | None,
    ) -> None:
        """Change how events are written. Pending counts are kept."""
        self._redactor = Redactor(path, client)
        if self._limits == (burst, per_minute):
            return  # keep what is left of them
        self._limits = burst, per_minute
        if burst is None or per_minute is None:
            self._samplers["error"].limit(Unlimited)
        else:
            per_minute = max(per_minute, _MIN_PER_MINUTE)
            overall = TokenBucket(per_minute, burst * 5)
            self._samplers["error"].limit(lambda: TokenBucket(per_minute / 60, burst), overall)

    def forget(self) -> None:
        """Drop all counts in a child process: the parent writes them."""
        for sampler in self._samplers.values():
            sampler.forget()

    def __call__(self, event: events.Event) -> None:
        """Write or count ``event``."""
        line = LINES.get(type(event)) or _line_of_base(type(event))
        if type(event) is events.LimitsChanged and line is not None:
            is_written = line.logger.isEnabledFor(line.level_of(event)) and line.logger.hasHandlers()
            self._pending_limits = None if is_written else event
        if line is None or not line.logger.isEnabledFor(level := line.level_of(event)):
            return
        suppressed: dict[str, Any] = {}
        if line.sampler is not None:
            sampler = self._samplers[line.sampler]
            count = sampler.check((line.name, line.group_by(event)), self._describe, event, line, level)
            if count is None:
                if self._report is not None:
                    self._report(events.LogsSuppressed(line.name, 1))
                return
            suppressed = {SUPPRESSED[line.sampler]: count}
        message = line.describe(event, self._redactor)
        message.keys.update(suppressed)
        _log(line.logger, level, line.name, message, getattr(event, "exception", None))

    def log_limits(self) -> None:
        """Log the limits if they could not be logged when they were set."""
        if self._pending_limits is not None:
            self(self._pending_limits)

    def is_detailed(self) -> bool:
        """Whether every session is logged, not only problems."""
        return SESSION.isEnabledFor(logging.DEBUG)

    @property
    def has_pending_summaries(self) -> bool:
        """Whether :meth:`flush_summaries` has counts to write."""
        return any(sampler.pending for sampler in self._samplers.values())

    def flush_summaries(self, *, now: bool = False) -> None:
        """Write the counts of suppressed records.

        :param now: do not wait until they are 30 s old.
        """
        for name, sampler in self._samplers.items():
            for kind, is_rest, count in sampler.flush(now=now):
                keys = {
                    "closecodes.suppressed.event": kind.line.name,
                    SUPPRESSED[name]: count,
                    **({} if is_rest else kind.keys),
                }
                what = ": other kinds of " + kind.line.name if is_rest else " like this: " + kind.first
                summary = Message("suppressed %d more%s", (count, what), keys)
                _log(kind.line.logger, kind.level, SUMMARIES[name], summary)

    def _describe(self, event: events.Event, line: Line, level: int) -> _Kind:
        message, arguments, keys = line.describe(event, self._redactor)
        return _Kind(line, level, message % arguments, {key: keys[key] for key in _SUMMARY_KEYS if key in keys})


def _line_of_base(kind: type) -> Line | None:
    """Return the line of an event class that a user's gate defines: that of its base class."""
    return next((LINES[base] for base in kind.__mro__ if base in LINES), None)


class Unprintable(Exception):  # noqa: N818 - it stands for an error
    """Replaces an exception that formatters fail on: attributes raise or lie, or groups are too deep."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type_name(type(error))}, which cannot be printed")
        self.__traceback__ = traceback_of(error)


_instances: weakref.WeakSet[LogObserver] = weakref.WeakSet()


def log_limits() -> None:
    """Have all observers log the limits that they could not log before."""
    for observer in [*_instances]:
        observer.log_limits()


def _log(
    logger: logging.Logger, level: int, name: str, message: Message, exception: BaseException | None = None
) -> None:
    extra = {
        "event.name": name,
        **_context(),
        **{key: value for key, value in message.keys.items() if value is not None},
    }
    exc_info: Any = None
    if exception is not None:
        if not is_plain(exception):
            exception = Unprintable(exception)
        exc_info = type(exception), exception, exception.__traceback__
    logger.log(level, message.message, *message.arguments, exc_info=exc_info, extra=extra)


def _context() -> dict[str, str]:
    """Return the trace and correlation ids of OpenTelemetry and asgi-correlation-id, if the application uses them."""
    found = {}
    if (current_span := getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)) is not None:
        span = current_span().get_span_context()
        if span.is_valid:
            found = {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
    correlation = getattr(sys.modules.get("asgi_correlation_id.context"), "correlation_id", None)
    if correlation is not None and (identifier := correlation.get()) is not None:
        found["correlation_id"] = one_line(str(identifier))[:128]
    return found
