"""Headroom of a process, for autoscaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from asgi_closecodes.bounds import finite
from asgi_closecodes.gates import GateBase, Shadow


def headroom(gates: Iterable[GateBase]) -> float | None:
    """Return the least of ``(limit - usage) / limit``; a limit of 0 has none, None is no such gate.

    A shadow refuses nobody, and one client at its own limit is no reason for another process.
    """
    return min((room for gate in gates if (room := _room_of(gate)) is not None), default=None)


def _room_of(gate: GateBase) -> float | None:
    if isinstance(gate, Shadow) or not _read(lambda: gate.is_overload):
        return None
    usage, limit = (finite(_read(lambda: gate.usage)), finite(_read(lambda: gate.limit)))
    if usage is None or limit is None:
        return None
    return (limit - usage) / limit if limit > 0 else 0.0


def _read(attribute: Callable[[], object]) -> object:
    """Return it; None where a gate of the user's raises."""
    try:
        return attribute()
    except Exception:
        return None
