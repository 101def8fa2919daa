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
    Gate,
    HandshakeRate,
    HandshakesInProgress,
    LoopLag,
    MaxSessions,
    MaxSessionsPerKey,
    Memory,
    Pressure,
)

from .model import Settings


def gates_of(settings: Settings, existing: Mapping[str, Gate]) -> dict[str, Gate]:
    """Return the gates that ``settings`` describe, in order, by the name of the setting that is their limit.

    Those in ``existing`` that count are kept and changed. They count without a limit too: one that is set
    later finds what is open.
    """
    per_client = existing.get("max_sessions_per_client") or MaxSessionsPerKey(None)
    handshakes = existing.get("max_handshakes_in_progress") or HandshakesInProgress(None)
    sessions = existing.get("max_sessions") or MaxSessions(None)
    assert isinstance(per_client, MaxSessionsPerKey)
    assert isinstance(handshakes, HandshakesInProgress)
    assert isinstance(sessions, MaxSessions)
    if per_client.limit != settings.max_sessions_per_client:
        per_client.limit = settings.max_sessions_per_client
    per_client.when_full = settings.when_client_full
    handshakes.limit, handshakes.handshake_timeout = settings.max_handshakes_in_progress, settings.handshake_timeout
    sessions.limit = settings.max_sessions

    gates: dict[str, Gate | None] = {
        "max_loop_lag": _lag(settings.max_loop_lag),
        "max_memory": _memory(settings.max_memory),
        "max_cpu": _cpu(settings.max_cpu),
        "max_sessions_per_client": per_client,
        "max_handshakes_in_progress": handshakes,
        "max_sessions": sessions,
        "handshakes_per_second": _rate(settings, existing.get("handshakes_per_second")),
        "cluster_max_sessions_per_client": _cluster_per_client(
            settings, existing.get("cluster_max_sessions_per_client")
        ),
        "cluster_max_sessions": _cluster(settings, existing.get("cluster_max_sessions")),
    }
    for name, gate in gates.items():
        kept = existing.get(name)
        if isinstance(gate, Pressure) and isinstance(kept, Pressure) and gate.same_as(kept):
            gates[name] = kept
    return {name: gate for name, gate in gates.items() if gate is not None}


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


def _rate(settings: Settings, existing: Gate | None) -> HandshakeRate | None:
    if settings.handshakes_per_second is None:
        return None
    gate = existing or HandshakeRate(settings.handshakes_per_second)
    assert isinstance(gate, HandshakeRate)
    gate.rate, gate.burst = settings.handshakes_per_second, settings.handshake_burst
    gate.cap = settings.retry_after_cap
    return gate


def _cluster(settings: Settings, existing: Gate | None) -> ClusterSessions | None:
    if settings.redis_url is None:
        return None
    gate = existing or ClusterSessions(None, settings.redis_url.get_secret_value(), settings.cluster_name)
    assert isinstance(gate, ClusterSessions)
    gate.ttl, gate.fallback = settings.cluster_ttl, settings.cluster_fallback
    if gate.limit != settings.cluster_max_sessions:
        gate.limit = settings.cluster_max_sessions
    return gate


def _cluster_per_client(settings: Settings, existing: Gate | None) -> ClusterSessionsPerKey | None:
    if settings.redis_url is None:
        return None
    gate = existing or ClusterSessionsPerKey(None, settings.redis_url.get_secret_value(), name=settings.cluster_name)
    assert isinstance(gate, ClusterSessionsPerKey)
    gate.ttl, gate.fallback = settings.cluster_ttl, settings.cluster_fallback
    gate.when_full = settings.when_client_full
    if gate.limit != settings.cluster_max_sessions_per_client:
        gate.limit = settings.cluster_max_sessions_per_client
    return gate
