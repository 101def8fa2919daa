"""Calls of gates that must not fail: to stop, to refuse, to describe their state."""

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
"""Seconds that a gate may take to stop: the server's shutdown waits for it, and uvicorn's has no limit."""


async def stop_all(gates: Iterable[GateBase], dispatcher: Dispatcher) -> None:
    """Stop all ``gates``; report those that fail or take too long."""
    for gate in gates:
        try:
            with anyio.fail_after(STOP_TIMEOUT_S):
                await gate.stop()
        except (Exception, asyncio.CancelledError) as error:  # cancelled: a task of the gate's
            if isinstance(error, asyncio.CancelledError) and cancelled_from_outside():
                raise
            dispatcher.failed_once(f"{gate.name}.stop", (id(gate), "stop"), error)


def refusal_of(gate: GateBase) -> TryAgainLater:
    """Return the refusal with which ``gate`` sheds a session."""
    try:
        cause, is_overload = gate.cause, gate.is_overload
    except Exception:  # of one of the user's
        cause, is_overload = "shed", True
    return TryAgainLater(cause=cause if isinstance(cause, str) else "shed", is_overload=is_overload is not False)


def state_of(gate: GateBase) -> GateState:
    """Return the state of ``gate`` for a snapshot."""
    return {
        "name": gate.name,
        "cause": refusal_of(gate).cause or "unknown",
        "usage": _number(lambda: gate.usage),
        "limit": _number(lambda: gate.limit),
        "shadow": isinstance(gate, Shadow),
    }


def _number(read: Callable[[], float | None]) -> float | None:
    """Return the number that ``read`` returns; None if it is none, or a user's gate raises."""
    try:
        return finite(read())
    except Exception:
        return None
