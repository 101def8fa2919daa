"""Exceptions that close a session, and the mapping from other exceptions to closes."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException, WebSocketException

from asgi_closecodes.naming import shown

from .bounds import finite
from .codes import Close, CloseCode, as_text, fit_reason, may_be_sent

MAX_RETRY_AFTER = 86400.0
"""Longest hint in seconds: a day. Browsers' timers hold 24 days."""

_TOKEN = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_NO_TOKEN = re.compile(r"[^A-Za-z0-9_.-]")
_NUMBERS = (int, float)

_STATUS_OF: Mapping[int, HTTPStatus] = {
    CloseCode.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    CloseCode.TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
}


class CloseWith(Exception):  # noqa: N818 - it is an instruction, not an error
    """Raise this anywhere in a handler to close the session with ``code`` and ``reason``.

    It is not logged as an error. Before the handshake is answered, ``reject_with`` decides whether the
    client gets the close or an HTTP response.
    """

    status = HTTPStatus.FORBIDDEN
    """HTTP status if the handshake is rejected by HTTP."""
    cause: str | None = None
    """Token that names the cause, for the log."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class TryAgainLater(CloseWith):
    """The server is overloaded: 1013, or HTTP 503 with ``Retry-After``.

    Gates raise it to refuse a session, handlers to end one. Its constructor never raises, which would admit the
    session: an invalid cause or hint is repaired, and logged once.

    :param reason: text in front of the parameters of the close reason. A single token, as in
        ``TryAgainLater("database")``, is also the default ``cause`` for the log.
    :param cause: token that names the exhausted resource: at most 32 letters, digits, ``_``, ``.`` and ``-``. Other
        characters become ``_``.
    :param retry_after: seconds until the client should reconnect, 0 to 86 400. By default the next slot of the
        process's retry queue.
    :param usage: used part of the limit, for the log.
    :param limit: the limit that was reached, for the log.
    :param is_overload: True for a limit of the process, which needs its operator (WARNING, saturation, alerts). False
        for one client's own limit.
    """

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code: int = CloseCode.TRY_AGAIN_LATER
    # For subclasses that do not call __init__.
    reason: str = "try again later"
    cause: str | None = None
    retry_after: float | None = None
    usage: float | None = None
    limit: float | None = None
    gate: str | None = None
    """The gate that refused; None if a handler raised it."""
    is_overload: bool = True
    repairs: tuple[str, ...] = ()
    """Repaired attributes, for the log."""
    _says_cause = False  # whether the reason is also the cause

    def __init__(
        self,
        reason: str = "try again later",
        *,
        cause: str | None = None,
        retry_after: float | None = None,
        usage: float | None = None,
        limit: float | None = None,
        is_overload: bool | None = None,
    ) -> None:
        super().__init__(type(self).code, reason)
        self.cause = cause
        self.retry_after = retry_after
        self.usage = usage
        self.limit = limit
        if is_overload is not None:
            self.is_overload = is_overload
        self.repair()
        self._says_cause = self.cause is None and _TOKEN.fullmatch(self.reason) is not None
        if self._says_cause:
            self.cause = self.reason
        self.args = (self.reason,)  # for unpickling

    def repair(self) -> None:
        """Repair invalid attributes, also those set after construction."""
        if type(self.reason) is not str:
            self.reason = as_text(self.reason)
        cause, retry_after = self.cause, self.retry_after
        if cause is not None and not (type(cause) is str and _TOKEN.fullmatch(cause)):
            self.cause, is_repaired = _repaired_cause(cause)
            if is_repaired:
                self.repairs += (f"cause={_given(cause)}",)
        if retry_after is not None and not (type(retry_after) in _NUMBERS and 0 <= retry_after <= MAX_RETRY_AFTER):
            self.retry_after, is_repaired = _repaired_retry_after(retry_after)
            if is_repaired:
                self.repairs += (f"retry_after={_given(retry_after)}",)
        usage, limit = self.usage, self.limit
        if usage is not None or limit is not None:
            self.usage, self.limit = finite(usage), finite(limit)

    def reason_with(self, retry_after: float) -> str:
        """Return the close reason: ``try again later; retry_after=2.3; cause=full``."""
        cause = "" if self.cause is None or self._says_cause else f"; cause={self.cause}"
        return fit_reason(self.reason, f"; retry_after={retry_after:.1f}{cause}")


def _repaired_cause(cause: object) -> tuple[str, bool]:
    """Return the nearest token ("unknown" unless ``cause`` is text), and whether it differs."""
    if not issubclass(type(cause), str):
        return "unknown", True
    text = as_text(cause)
    token = _NO_TOKEN.sub("_", text[:32]) or "unknown"
    return token, token != text


def _repaired_retry_after(retry_after: object) -> tuple[float | None, bool]:
    """Return the nearest hint (None unless it is a number), and whether it differs."""
    try:
        seconds = math.nan if isinstance(retry_after, bool) else float(retry_after)  # type: ignore[arg-type]
    except OverflowError:  # an int or a Fraction of more than 308 digits
        seconds = math.copysign(math.inf, 1 if retry_after > 0 else -1)  # type: ignore[operator]
    except Exception:
        return None, True
    if math.isnan(seconds):
        return None, True
    nearest = min(max(seconds, 0.0), MAX_RETRY_AFTER)
    return nearest, nearest != seconds


def _given(value: object) -> str:
    """Return ``value`` for a log: text and numbers, else only the type. Other objects may contain secrets."""
    if issubclass(type(value), str):
        return shown(as_text(value))
    return shown(value) if type(value) in _NUMBERS else f"<{type(value).__name__}>"


class ServiceRestart(TryAgainLater):
    """The server restarts: 1012, or HTTP 503 with ``Retry-After``."""

    code: int = CloseCode.SERVICE_RESTART
    is_overload = False  # a drain is intended


class EndedFromOutside(CloseWith):
    """A session is ended from outside of its handler, without a retry hint.

    :param cause: token for the log.
    """

    is_overload = False

    def __init__(self, code: int, reason: str, cause: str) -> None:
        super().__init__(code, reason)
        self.cause = cause
        self.status = _STATUS_OF.get(code, HTTPStatus.FORBIDDEN)


class TimedOut(EndedFromOutside):
    """A session has reached a deadline.

    :param cause: token for the close reason, too.
    """

    def __init__(self, code: int, reason: str, cause: str) -> None:
        super().__init__(code, f"{reason}; cause={cause}", cause)


class TooManyMessages(TimedOut):
    """A client sent more than ``messages_per_second`` for longer than ``message_patience``.

    :param limit: messages a second.
    """

    gate = "messages"
    """Name instead of a gate's, in events and snapshots; also the cause."""

    def __init__(self, limit: float) -> None:
        super().__init__(CloseCode.POLICY_VIOLATION, "too many messages", self.gate)
        self.status = HTTPStatus.TOO_MANY_REQUESTS
        self.limit = limit


class SessionEnded(ConnectionError):  # noqa: N818 - names what has happened
    """A handler sent to a session that was shed, drained or replaced.

    It is an OSError, as ASGI servers raise after the peer has left. Like those, it need not be caught.
    """


CloseFor: TypeAlias = int | Close | Callable[[Any], int | Close | CloseWith | None]
"""Close for an exception: a code, a :class:`Close`, or a function of the exception that returns either.

A function may also return a :class:`CloseWith`, which is handled as if raised, or None if the
exception is an error after all.
"""

ExceptionMapping: TypeAlias = Mapping[type[Exception], CloseFor]


def close_for_status(status: int, retry_after: float | None = None) -> CloseWith:
    """Return the close that corresponds to an HTTP response of ``status``."""
    try:
        reason = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        reason = str(status)
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return TryAgainLater(reason, retry_after=retry_after)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return CloseWith(CloseCode.INTERNAL_ERROR, reason)
    return CloseWith(CloseCode.POLICY_VIOLATION, reason)


_DEFAULTS: ExceptionMapping = MappingProxyType(
    {
        CloseWith: lambda error: error,
        # Starlette's ExceptionMiddleware handles these two inside of ours. They reach us only without it:
        # around a plain ASGI application, a route or a mount.
        WebSocketException: lambda error: CloseWith(error.code, error.reason),
        HTTPException: lambda error: close_for_status(error.status_code),
    }
)


def checked_mapping(mapping: ExceptionMapping | None) -> ExceptionMapping:
    """Return ``mapping`` merged over the defaults for Starlette's exceptions.

    :raises TypeError: if it is not a mapping.
    :raises ValueError: naming every key that is not an exception class, and every close that must not be sent.
    """
    if not isinstance(mapping, Mapping | None):
        raise TypeError(f"exceptions must be a mapping, as {{PermissionError: 1008}}, not {shown(mapping)}")
    problems = []
    for key, value in (mapping or {}).items():
        if not (isinstance(key, type) and issubclass(key, Exception)):
            problems.append(f"{shown(key)} is not a subclass of Exception")
        elif isinstance(value, (int, Close)):
            code = value.code if isinstance(value, Close) else value
            if not may_be_sent(code):
                problems.append(
                    f"{key.__name__}: code {shown(code)} must not be sent; use 1000-1003, 1007-1014 or 3000-4999"
                )
        elif isinstance(value, type) and issubclass(
            value, (Close, Exception)
        ):  # calling the class would put the exception's text into the reason
            problems.append(
                f"{key.__name__}: {shown(value)} is a class; give a close code, as 1013, or a function, "
                f"as lambda error: {value.__name__}(...)"
            )
        elif not callable(value):
            problems.append(
                f"{key.__name__}: {shown(value)} is neither a close code, a Close nor a function of the exception"
            )
    if problems:
        raise ValueError("exceptions is invalid: " + "; ".join(problems))
    return {**_DEFAULTS, **(mapping or {})}


def without_defaults(mapping: ExceptionMapping) -> ExceptionMapping:
    """Return what the user's part of ``mapping`` says, and the exceptions of this library."""
    return {cls: close for cls, close in mapping.items() if cls is CloseWith or _DEFAULTS.get(cls) is not close}


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` itself, or the leaves of a group."""
    pending = [error]  # no recursion: groups may be nested deeper than its limit
    while pending:
        one = pending.pop()
        if issubclass(type(one), BaseExceptionGroup):
            pending += reversed(_members_of(one))
        else:
            yield one


# The interpreter's own accessor: a class may override the attribute.
_members_of = vars(BaseExceptionGroup)["exceptions"].__get__


def refusal_in(error: BaseException) -> TryAgainLater | None:
    """Return ``error`` if it is a refusal, or the first refusal of a group of refusals only."""
    if type(error) is TryAgainLater:
        return error
    parts = [*leaves(error)]
    refuses = all(issubclass(type(part), TryAgainLater) for part in parts)
    return parts[0] if refuses else None  # type: ignore[return-value]


def deliberate_close(errors: Iterable[BaseException], mapping: ExceptionMapping) -> CloseWith | None:
    """Return the close that all ``errors`` agree on, or None.

    :raises Exception: any error of a function in ``mapping``, and TypeError for an invalid result of one.
    """
    agreed: CloseWith | None = None
    for error in errors:
        close = _close_for(error, mapping)
        if close is None or (agreed is not None and (close.code, close.reason) != (agreed.code, agreed.reason)):
            return None
        agreed = agreed or close
    return agreed


def _close_for(error: BaseException, mapping: ExceptionMapping) -> CloseWith | None:
    for cls in type(error).__mro__:  # most specific first
        mapped = mapping.get(cls)
        if mapped is None:
            continue
        answer = mapped(error) if callable(mapped) else mapped
        match answer:
            case CloseWith() | None:
                return answer
            case Close(code, reason) if may_be_sent(code):
                return CloseWith(code, reason)
            case CloseCode.TRY_AGAIN_LATER:
                return TryAgainLater()  # a plain 1013 would have no retry hint
            case int(code) if may_be_sent(code):  # not booleans
                return CloseWith(code)
        if inspect.iscoroutine(answer):
            answer.close()  # prevent the warning that it was never awaited
        raise TypeError(
            f"exceptions must give a sendable close code, a Close, a CloseWith or None for {cls.__name__}, "
            f"not {shown(answer)}"
        )
    return None
