"""Sentry filter: Sentry sends local variables, query strings and headers by default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from asgi_closecodes.logs.tokens import masked_path

__all__ = ["before_send"]

_Event = TypeVar("_Event", bound=Mapping[str, object])

_TEXTS = ("breadcrumbs", "contexts", "culprit", "extra", "logentry", "message", "spans", "tags", "transaction")
"""Parts of an event that may contain URLs: uvicorn's log lines, requests of the application."""

_DROPPED = frozenset(
    {"cookies", "headers", "http.fragment", "http.query", "query_string", "url.fragment", "url.query", "vars"}
)
_HEADERS = ("http.request.header.", "http.response.header.")
_ADDRESS = re.compile(r"(?P<path>/[^\s\"'<>?#]*)(?:[?#][^\s\"'<>]*)?|(?<=\S)\?[^\s\"'<>]+|[?#][\w.-]+=[^\s\"'<>]*")


def before_send(event: _Event, hint: object) -> _Event:
    """Remove possible secrets from an event in place.

    ``sentry_sdk.init(..., include_local_variables=False, before_send=before_send,
    before_send_transaction=before_send)``: the option leaves local variables out. This removes all of the request but
    method and URL, query strings, and tokens in paths. The text of an exception stays: the application must keep it
    clean.
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
