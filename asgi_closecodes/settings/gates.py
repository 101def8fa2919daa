"""The gates that settings describe."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import (
    ByteSize,
)

from asgi_closecodes.gates import (
    ClusterSessions,
    ClusterSessionsPerKey,
    Cpu,
    GateBase,
    HandshakeRate,
    HandshakesInProgress,
    LoopLag,
    MaxSessions,
    MaxSessionsPerKey,
    Memory,
    Pressure,
)
from asgi_closecodes.gates.sessions import Limited

from .model import Settings


def gates_of(settings: Settings, existing: Mapping[str, GateBase]) -> dict[str, GateBase]:
    """Return the gates that ``settings`` describe, in order, by the name of the setting that is their limit.

    Those in ``existing`` that count are kept, and none is changed: :func:`set_limits` does that. They count without a
    limit too: one that is set later finds what is open.
    """
    gates: dict[str, GateBase | None] = {
        "max_loop_lag": _lag(settings.max_loop_lag),
        "max_memory": _memory(settings.max_memory),
        "max_cpu": _cpu(settings.max_cpu),
        "max_sessions_per_client": existing.get("max_sessions_per_client") or MaxSessionsPerKey(None),
        "max_handshakes_in_progress": existing.get("max_handshakes_in_progress") or HandshakesInProgress(None),
        "max_sessions": existing.get("max_sessions") or MaxSessions(None),
        "handshakes_per_second": _rate(settings, existing.get("handshakes_per_second")),
        "cluster_max_sessions_per_client": _cluster_per_client(
            settings, existing.get("cluster_max_sessions_per_client")
        ),
        "cluster_max_sessions": _cluster(settings, existing.get("cluster_max_sessions")),
    }
    for name, gate in gates.items():
        kept = existing.get(name)
        if isinstance(gate, Pressure) and isinstance(kept, Pressure):
            if gate.same_as(kept):
                gates[name] = kept
            else:
                gate.take_over(kept)
    described = {name: gate for name, gate in gates.items() if gate is not None}
    for name, gate in described.items():
        gate.name = name
    return described


def set_limits(gates: Mapping[str, GateBase], settings: Settings) -> None:
    """Give ``gates`` the limits that ``settings`` describe."""
    for name, gate in gates.items():
        if isinstance(gate, (ClusterSessions, ClusterSessionsPerKey)):
            gate.ttl, gate.fallback = settings.cluster_ttl, settings.cluster_fallback
        if isinstance(gate, MaxSessionsPerKey):
            gate.when_full = settings.when_client_full
        if isinstance(gate, HandshakesInProgress):
            gate.handshake_timeout = settings.handshake_timeout
        if isinstance(gate, HandshakeRate):
            gate.rate, gate.burst = settings.handshakes_per_second or 0, settings.handshake_burst
            gate.cap = settings.retry_after_cap
        if isinstance(gate, Limited) and gate.limit != (limit := getattr(settings, name)):
            gate.limit = limit


def _lag(limit: float | None) -> Pressure | None:
    return None if limit is None else Pressure(LoopLag(), limit, limit / 2, limit * 2)


def _memory(limit: float | ByteSize | None) -> Pressure | None:
    if limit is None:
        return None
    if isinstance(limit, ByteSize):
        return Pressure(Memory(int(limit)), 1.0, 0.9, 1.1)
    return Pressure(Memory(), limit, limit * 0.9, (limit + 1) / 2 if limit < 1 else None)


def _cpu(limit: float | None) -> Pressure | None:
    return None if limit is None else Pressure(Cpu(), limit, limit * 0.8, (limit + 1) / 2 if limit < 1 else None)


def _rate(settings: Settings, existing: GateBase | None) -> GateBase | None:
    if settings.handshakes_per_second is None:
        return None
    return existing or HandshakeRate(settings.handshakes_per_second)


def _cluster(settings: Settings, existing: GateBase | None) -> GateBase | None:
    if settings.redis_url is None:
        return None
    return existing or ClusterSessions(None, settings.redis_url.get_secret_value(), settings.cluster_name)


def _cluster_per_client(settings: Settings, existing: GateBase | None) -> GateBase | None:
    if settings.redis_url is None:
        return None
    url = settings.redis_url.get_secret_value()
    return existing or ClusterSessionsPerKey(None, url, name=settings.cluster_name)
