"""What the examples on the pages leave to the user, by name: an application, a pool, whoever authenticates.

An example that is complete needs none of them. Those of a framework go by the heading that the example stands below.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import create_autospec

from fastapi import FastAPI

from asgi_closecodes import Guard
from asgi_closecodes.session import Session

RUN_ELSEWHERE = {"asgi_closecodes/integrations/README.md"}
"""Pages whose examples tests/integrations runs, each with its framework."""

ENVIRONMENT = {"OPERATOR_TOKEN": "secret"}


class Account:
    id = "7"


class PoolTimeout(Exception):
    pass


class Quota(Exception):
    plan = "free"


class Pool:
    exhausted = False


async def any_asgi_app(scope, receive, send):
    await send({"type": "websocket.accept"})


async def endpoint(websocket):
    await websocket.accept()


async def authenticate(token):
    return Account()


async def answer(call):
    return call


async def new_token():
    return "new"


def banned(websocket):
    return False


def open_now():
    return True


_ANYWHERE: dict[str, Any] = {
    "PoolTimeout": PoolTimeout,
    "Quota": Quota,
    "User": Account,
    "answer": answer,
    "any_asgi_app": any_asgi_app,
    "app": FastAPI(),
    "authenticate": authenticate,
    "banned": banned,
    "call": "hello",
    "dsn": None,
    "endpoint": endpoint,
    "guard": Guard(),
    "new_token": new_token,
    "open_now": open_now,
    "pool": Pool(),
    "routes": [],
    "session": create_autospec(Session, instance=True),
    "token": "old",
    "url": "ws://127.0.0.1:8000/chat",
    "user": Account(),
}


@functools.cache
def _ariadne():
    import ariadne

    async def on_connect(websocket, payload):
        pass

    return {"schema": ariadne.make_executable_schema("type Query { number: Int }"), "on_connect": on_connect}


_BELOW: Mapping[str, Callable[[], Mapping[str, Any]]] = {
    "Ariadne": _ariadne,
}
"""By heading, made when asked for: it imports a framework."""


def of(headings: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the stand-ins of an example below ``headings``, by name."""
    return _ANYWHERE | {
        name: value for heading in headings if heading in _BELOW for name, value in _BELOW[heading]().items()
    }
