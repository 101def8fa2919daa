"""Choice how to reject a handshake: accept and close, so that browsers see the reason, or an HTTP response."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeAlias

from starlette.types import Scope

from asgi_closecodes.naming import shown
from asgi_closecodes.session import can_deny, offered_subprotocols
from asgi_closecodes.session.protocol import HandlerProtocol
from asgi_closecodes.settings import Settings
from asgi_closecodes.token_bucket import TokenBucket, Unlimited

from .dispatch import reject_coroutine
from .pages import Pages, page_of

Mode: TypeAlias = Literal["close", "http"]


class Rejection:
    """Decides by the settings ``reject_with`` and ``max_refusals_per_second``.

    :param failed_once: reports a function of the user's that failed; see :class:`Dispatcher`.
    """

    __slots__ = ("_closes", "_failed_once", "_graphql_closes", "_pages", "_reject_with")

    def __init__(self, failed_once: Callable[[str, Hashable, BaseException], None]) -> None:
        self._failed_once = failed_once
        self._pages = Pages()
        self._reject_with: Literal["auto", "close", "http"] | Callable[[Any], Any] = "auto"
        self._closes: TokenBucket | Unlimited = TokenBucket(0, 0)
        self._graphql_closes: TokenBucket | Unlimited = TokenBucket(0, 0)

    def apply(self, settings: Settings) -> None:
        """Apply ``settings``."""
        self._reject_with = settings.reject_with
        limit = settings.max_refusals_per_second
        self._closes = _limited(self._closes, limit)
        self._graphql_closes = _limited(self._graphql_closes, limit)

    def forget(self) -> None:
        """Reset in a child process."""
        self._pages.forget()

    def mode(self, session: HandlerProtocol, retry_after: float | None) -> Mode:
        """Decide how to reject one handshake; a close uses up the budget.

        :param retry_after: the hint of a refusal; None where a handler has failed, or closes by itself.
        """
        scope = session.scope
        if not can_deny(scope):
            return "close"
        reject_with = self._chosen(session) if callable(self._reject_with) else self._reject_with
        if reject_with == "http" or (reject_with == "auto" and _prefers_http(scope)):
            return "http"
        # graphql-ws gives up for ever when a handshake fails. It backs off after a close, so it has its own budget.
        offered = offered_subprotocols(scope)
        is_graphql = bool(offered) and any(name.startswith("graphql-") for name in offered)
        page = page_of(scope) if reject_with == "auto" and retry_after is not None and not is_graphql else None
        if page is not None and self._pages.is_hammering(page):
            return "http"
        if not (self._graphql_closes if is_graphql else self._closes).take():
            return "http"
        if page is not None and retry_after is not None:
            self._pages.refused_by_close(page, retry_after)
        return "close"

    def _chosen(self, session: HandlerProtocol) -> object:
        """Return what the user's function chooses; "close" if it fails."""
        choose: Any = self._reject_with
        try:
            chosen = choose(session)
            reject_coroutine(chosen)
            if type(chosen) is str and chosen in {"close", "http"}:
                return chosen
            raise ValueError(f"reject_with= chose {shown(chosen)}; return 'close' or 'http'")
        except Exception as error:
            self._failed_once("reject_with", ("reject_with", id(choose)), error)
            return "close"


def _prefers_http(scope: Scope) -> bool:
    """Whether a close would do harm.

    Engine.IO's clients take the accept for a session. Over HTTP/2 hypercorn ends all sockets of the connection.
    """
    query = scope.get("query_string") or b""
    return query.startswith(b"EIO=") or b"&EIO=" in query or not scope.get("http_version", "1.1").startswith("1.")


def _limited(bucket: TokenBucket | Unlimited, per_second: float | None) -> TokenBucket | Unlimited:
    """Return a budget of ``per_second``; ``bucket`` is reused, with the tokens that it has left."""
    if per_second is None:
        return Unlimited()
    if not isinstance(bucket, TokenBucket):
        return TokenBucket(per_second, per_second)
    bucket.per_second = bucket.burst = per_second
    return bucket
