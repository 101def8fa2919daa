"""Nothing secret in what goes to Sentry, which by itself sends local variables, query strings and headers along."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from asgi_closecodes.logs.tokens import masked_path

__all__ = ["before_send"]

_Event = TypeVar("_Event", bound=Mapping[str, object])

_TEXTS = ("breadcrumbs", "contexts", "culprit", "extra", "logentry", "message", "spans", "tags", "transaction")
"""Parts of an event in which addresses stand: uvicorn's lines, requests that the application made."""

_DROPPED = frozenset(
    {"cookies", "headers", "http.fragment", "http.query", "query_string", "url.fragment", "url.query", "vars"}
)
_HEADERS = ("http.request.header.", "http.response.header.")
_ADDRESS = re.compile(r"(?P<path>/[^\s\"'<>?#]*)(?:[?#][^\s\"'<>]*)?|(?<=\S)\?[^\s\"'<>]+|[?#][\w.-]+=[^\s\"'<>]*")


def before_send(event: _Event, hint: object) -> _Event:
    """Strip an event of what may be secret, and no option of sentry_sdk leaves out.

    ``sentry_sdk.init(..., include_local_variables=False, before_send=before_send,
    before_send_transaction=before_send)``: the option has frames go without their local variables. This takes the
    request but for its method and URL, query strings in the texts of breadcrumbs, and what looks like a token in a
    path. The text of an exception stays: it is the application's to keep clean. It changes the event in place.
    """
    del hint
    parts = cast("dict[str, Any]", event)
    if isinstance(request := parts.get("request"), dict):
        parts["request"] = {key: _cleaned(request[key]) for key in ("method", "url") if key in request}
    for key in _TEXTS:
        if key in parts:
            parts[key] = _cleaned(parts[key])
    return event


def _cleaned(value: object) -> object:
    match value:
        case str():
            return _ADDRESS.sub(_without_secrets, value)
        case list() | tuple():
            return [_cleaned(item) for item in value]
        case dict():
            return {
                key: _cleaned(item)
                for key, item in value.items()
                if key not in _DROPPED and not str(key).startswith(_HEADERS)
            }
        case _:
            return value


def _without_secrets(address: re.Match[str]) -> str:
    return masked_path(address["path"] or "")
