"""Events to log records: the message carries the essentials, flat dotted extras carry the rest.

The exception travels as ``exc_info`` alone, so that each formatter and service renders it its own way. The keys are
described by ``schema.json`` beside this file.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from asgi_closecodes import events
from asgi_closecodes.error_identity import is_plain, traceback_of, type_name
from asgi_closecodes.token_bucket import Rate, Unlimited, Window

from .messages import LINES, SESSION, SUMMARIES, SUPPRESSED, Line, Message, Redactor, Sampler
from .redaction import one_line
from .sampling import LogSampler

_MIN_PER_MINUTE = 1e-9
"""Records a minute where none are wanted after the burst: a Rate of 0 lets no burst through either."""


_MAX_REFUSAL_KINDS = 64
"""Kinds of refusals that are told apart: each may have five records in 10 s, and names from outside make kinds."""

_SUMMARY_KEYS = (
    "closecodes.error.fingerprint",
    "closecodes.gate.name",
    "closecodes.gate.cause",
    "closecodes.refusal.mode",
    "closecodes.callback",
    "websocket.close.code",
)
"""Keys of a record that the summary of its kind has too."""


class _Kind(NamedTuple):
    """Content of the summary of records that were counted."""

    line: Line
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

    WRITTEN = LINES.keys()
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
        self._pending_limits: events.LimitsChanged | None = None
        _instances.add(self)
        self._samplers: dict[Sampler, LogSampler[_Kind]] = {
            "error": LogSampler(Unlimited),
            "refusal": LogSampler(lambda: Window(5, 10.0), most=_MAX_REFUSAL_KINDS),
            "saturation": LogSampler(lambda: Window(5, 10.0), most=_MAX_REFUSAL_KINDS),
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
        """Change how events are written; what was counted stays counted."""
        self._redactor = Redactor(path, client)
        if self._limits == (burst, per_minute):
            return  # what is left of them stays
        self._limits = burst, per_minute
        if burst is None or per_minute is None:
            self._samplers["error"].limit(Unlimited)
        else:
            per_minute = max(per_minute, _MIN_PER_MINUTE)
            self._samplers["error"].limit(lambda: Rate(per_minute / 60, burst), Rate(per_minute, burst * 5))

    def forget(self) -> None:
        """Begin anew, in a child process: what was counted is for the parent to write."""
        for sampler in self._samplers.values():
            sampler.forget()

    def __call__(self, event: events.Event) -> None:
        """Write ``event``, or count it."""
        line = LINES.get(type(event))
        if type(event) is events.LimitsChanged and line is not None:
            is_written = line.logger.isEnabledFor(line.level_of(event)) and line.logger.hasHandlers()
            self._pending_limits = None if is_written else event
        if line is None or not line.logger.isEnabledFor(level := line.level_of(event)):
            return
        suppressed: dict[str, Any] = {}
        if line.sampler is not None:
            count = self._samplers[line.sampler].check(
                (line.name, line.group_by(event)), lambda: self._describe(event, line, level)
            )
            if count is None:
                if self._report is not None:
                    self._report(events.LogsSuppressed(line.name, 1))
                return
            suppressed = {SUPPRESSED[line.sampler]: count}
        message = line.describe(event, self._redactor)
        message.keys.update(suppressed)
        _log(line.logger, level, line.name, message, getattr(event, "exception", None))

    def log_limits(self) -> None:
        """Write the limits that were set before logging was configured to write them."""
        if self._pending_limits is not None:
            self(self._pending_limits)

    @property
    def is_detailed(self) -> bool:
        """Whether it is written how each session goes, and not only what is wrong."""
        return SESSION.isEnabledFor(logging.DEBUG)

    @property
    def has_pending_summaries(self) -> bool:
        """Whether there are counts for :meth:`flush_summaries` to write."""
        return any(sampler.has_pending_summaries for sampler in self._samplers.values())

    def flush_summaries(self, *, now: bool = False) -> None:
        """Write what was counted instead of written.

        :param now: at once; else when it is 30 s old.
        """
        for name, sampler in self._samplers.items():
            for kind, is_rest, count in sampler.flush(now=now):
                keys = {
                    "closecodes.suppressed.event": kind.line.name,
                    SUPPRESSED[name]: count,
                    **({} if is_rest else kind.keys),
                }
                what = "other kinds of " + kind.line.name if is_rest else kind.first
                summary = Message("%d more were counted, not written: %s", (count, what), keys)
                _log(kind.line.logger, kind.level, SUMMARIES[name], summary)

    def _describe(self, event: events.Event, line: Line, level: int) -> _Kind:
        message, arguments, keys = line.describe(event, self._redactor)
        return _Kind(line, level, message % arguments, {key: keys[key] for key in _SUMMARY_KEYS if key in keys})


class Unprintable(Exception):  # noqa: N818 - it stands for an error
    """Stands in a record for an exception that formatters fail on: attributes that raise or lie, groups too deep."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type_name(type(error))}, which cannot be printed")
        self.__traceback__ = traceback_of(error)


_instances: weakref.WeakSet[LogObserver] = weakref.WeakSet()


def log_limits() -> None:
    """Have all observers write the limits that they could not write before."""
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
