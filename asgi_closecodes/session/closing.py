"""Plans of closes: what each cause of an end means, as plain data. Nothing here sends, or knows the session."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Literal, TypeAlias

from starlette.types import Message, Scope

from asgi_closecodes.codes import Close, CloseCode, fit_reason, may_be_sent
from asgi_closecodes.error_identity import type_name
from asgi_closecodes.exceptions import CloseWith, TryAgainLater, close_for_status
from asgi_closecodes.frozen import frozen

from .scope import can_deny, is_served

# By themselves: a look into an Enum takes a thousand instructions.
_TRY_AGAIN_LATER = int(CloseCode.TRY_AGAIN_LATER)
_INTERNAL_SERVER_ERROR = HTTPStatus.INTERNAL_SERVER_ERROR

HandshakeMode: TypeAlias = Literal["close", "http", "reject"]
"""Answer to a handshake that has none yet: accept and close, an HTTP response, or ASGI's plain HTTP 403."""


@frozen
class Rules:
    """Settings that decide how sessions end, under the same names."""

    error_code: int
    try_again_code: int
    deliver_early_closes: bool
    reraise: bool | Literal["auto"]
    debug: bool
    shed_grace: float
    send_timeout: float | None
    cancel_after_disconnect: bool
    abandon_after: float


@frozen
class ClosePlan:
    """Close of a session, or the answer to its handshake if it has none yet."""

    close: Close
    mode: HandshakeMode = "reject"
    """The answer to a handshake that has none yet."""
    status: int = HTTPStatus.FORBIDDEN
    """The HTTP status in mode ``http``."""
    retry_after: float | None = None
    """Seconds for the header ``Retry-After`` of that response."""
    asked: Close | None = None
    """Close that was asked for, if it may not be sent as it is."""


COMPLETED = ClosePlan(Close(CloseCode.NORMAL_CLOSURE))
"""Close of a session whose handler has returned."""


def of_cancellation(mode: HandshakeMode) -> ClosePlan:
    """Return the close of a session that is cancelled from outside."""
    return ClosePlan(Close(CloseCode.SERVICE_RESTART), mode, HTTPStatus.SERVICE_UNAVAILABLE)


def of_failure(error: BaseException, error_id: str, rules: Rules, mode: HandshakeMode) -> ClosePlan:
    """Return the close of a session whose handler failed; the client sees the error's text only with ``debug``."""
    reason = f"internal error; ref={error_id}"
    if rules.debug:
        reason = fit_reason(_described(error), f"; ref={error_id}")
    return ClosePlan(Close(rules.error_code, reason), mode, _INTERNAL_SERVER_ERROR)


def of_missing_route(scope: Scope) -> ClosePlan:
    """Return the answer to a handshake without a route: HTTP 404 if the server can, else ASGI's refusal."""
    mode: HandshakeMode = "http" if can_deny(scope) else "reject"
    return ClosePlan(Close(CloseCode.POLICY_VIOLATION, "404 Not Found"), mode, HTTPStatus.NOT_FOUND)


def of_wish(
    wish: CloseWith, rules: Rules, mode: Callable[[float | None], HandshakeMode], retry_after: Callable[[], float]
) -> ClosePlan:
    """Return the close that ``wish`` asks for. It may raise anything: ``wish`` may be of a user's class.

    :param mode: returns how to reject a handshake, given the hint of a refusal.
    :param retry_after: returns the next hint, for a ``wish`` without one.
    """
    hint: float | None = None
    if isinstance(wish, TryAgainLater):
        wish.repair()
        hint = retry_after() if wish.retry_after is None else wish.retry_after
        code = rules.try_again_code if wish.code == _TRY_AGAIN_LATER else wish.code
        asked = Close(code, wish.reason_with(hint))
    else:
        asked = Close(wish.code, wish.reason)
    close, status = asked.sendable(), _status_of(wish)  # first, as they may raise; ``mode`` counts a close
    is_sendable = close is asked or may_be_sent(asked.code)
    return ClosePlan(close, mode(hint), status, hint, None if is_sendable else asked)


def wish_of_denial(message: Message) -> CloseWith:
    """Return the close for an HTTP response that comes after the accept, as Starlette sends one."""
    delays = [value for name, value in message.get("headers", ()) if name.lower() == b"retry-after"]
    return close_for_status(message["status"], float(delays[0]) if delays and delays[0].isdigit() else None)


def asked_by(message: Message) -> Close:
    """Return the close that a handler's message asks for."""
    code, reason = message.get("code"), message.get("reason")
    return Close(CloseCode.NORMAL_CLOSURE if code is None else code, "" if reason is None else reason)


def reraises(rules: Rules, scope: Scope) -> bool:
    """Whether the handler's exception travels on after the close."""
    return not is_served(scope) if rules.reraise == "auto" else rules.reraise


def denial(plan: ClosePlan, scope: Scope) -> Iterator[Message]:
    """Yield the messages of the HTTP response, with the body in one: granian delivers no second."""
    body = plan.close.reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    if scope.get("http_version", "1.1").startswith("1."):
        headers.append((b"connection", b"close"))  # granian keeps the socket open otherwise, for 30 s
    if plan.retry_after is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(plan.retry_after)))
    yield {"type": "websocket.http.response.start", "status": int(plan.status), "headers": headers}
    yield {"type": "websocket.http.response.body", "body": body}


def _status_of(wish: CloseWith) -> int:
    """Return the HTTP status of ``wish``; a user's class may have set it to anything."""
    status = wish.status
    if isinstance(status, int) and 200 <= status <= 599:
        return status
    return (TryAgainLater if isinstance(wish, TryAgainLater) else CloseWith).status


def _described(error: BaseException) -> str:
    name = type_name(type(error)).rpartition(".")[2]
    try:
        return f"{name}: {error}"
    except Exception:
        return name
