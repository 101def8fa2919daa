"""The end of gates, the refusal of those that they shed, and their state as plain data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import anyio

from asgi_closecodes.bounds import finite
from asgi_closecodes.concurrency import cancelled_from_outside
from asgi_closecodes.events import GateState
from asgi_closecodes.exceptions import TryAgainLater
from asgi_closecodes.gates import GateBase, Shadow

from .dispatch import Dispatcher

STOP_TIMEOUT_S = 10.0
"""Seconds that a gate may take to stop: a server's shutdown waits for it, uvicorn's without an end."""


async def stop_all(gates: Iterable[GateBase], dispatcher: Dispatcher) -> None:
    """Stop ``gates``, whatever one of them does."""
    for gate in gates:
        try:
            with anyio.fail_after(STOP_TIMEOUT_S):
                await gate.stop()
        except (Exception, asyncio.CancelledError) as error:  # this too: of a task that it has cancelled itself
            if isinstance(error, asyncio.CancelledError) and cancelled_from_outside():
                raise
            dispatcher.failed_once(f"{gate.name}.stop", (id(gate), "stop"), error)


def refusal_of(gate: GateBase) -> TryAgainLater:
    """Return what ends a session for ``gate``."""
    try:
        cause, is_overload = gate.cause, gate.is_overload
    except Exception:  # of one of the user's
        cause, is_overload = "shed", True
    return TryAgainLater(cause=cause if isinstance(cause, str) else "shed", is_overload=is_overload is not False)


def state_of(gate: GateBase) -> GateState:
    """Return its state, for a snapshot."""
    return {
        "name": gate.name,
        "cause": refusal_of(gate).cause or "unknown",
        "usage": _number(lambda: gate.usage),
        "limit": _number(lambda: gate.limit),
        "shadow": isinstance(gate, Shadow),
    }


def _number(read: Callable[[], float | None]) -> float | None:
    """Return the number; None for none, and where a gate of the user's raises."""
    try:
        return finite(read())
    except Exception:
        return None
