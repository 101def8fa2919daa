"""Headroom of a process, for autoscaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from asgi_closecodes.bounds import finite
from asgi_closecodes.gates import GateBase, Shadow


def headroom(gates: Iterable[GateBase]) -> float | None:
    """Return the least ``(limit - usage) / limit`` of the gates: 0 for a limit of 0, None without such a gate.

    Gates in the shadow do not count: they refuse nobody. Nor do limits of one client: another process would not help.
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
    """Return the attribute; None if a user's gate raises."""
    try:
        return attribute()
    except Exception:
        return None
