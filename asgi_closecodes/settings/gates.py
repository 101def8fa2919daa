"""Gates built from settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ByteSize

from asgi_closecodes.frozen import frozen
from asgi_closecodes.gates import (
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

if TYPE_CHECKING:
    from asgi_closecodes.gates import ClusterSessions, ClusterSessionsPerKey

    from .model import Settings


def _set_limit(gate: Limited, limit: int | None) -> None:
    if gate.limit != limit:
        gate.limit = limit


def _counting(limit: int | None, existing: GateBase | None, make: Callable[[int], GateBase]) -> GateBase | None:
    """Return the gate of a limit that is set."""
    return None if limit is None else existing or make(limit)


def _pressure(gate: Pressure | None, existing: GateBase | None) -> Pressure | None:
    """Return ``existing`` if it equals ``gate``, else ``gate`` with its state."""
    if gate is not None and isinstance(existing, Pressure):
        if gate.same_as(existing):
            return existing
        gate.take_over(existing)
    return gate


def _lag(settings: Settings, existing: GateBase | None) -> GateBase | None:
    limit = settings.max_loop_lag
    return _pressure(None if limit is None else Pressure(LoopLag(), limit, limit / 2, limit * 2), existing)


def _memory(settings: Settings, existing: GateBase | None) -> GateBase | None:
    limit = settings.max_memory
    if limit is None:
        return None
    if isinstance(limit, ByteSize):
        return _pressure(Pressure(Memory(int(limit)), 1.0, 0.9, 1.1), existing)
    return _pressure(Pressure(Memory(), limit, limit * 0.9, _half_of_headroom(limit)), existing)


def _cpu(settings: Settings, existing: GateBase | None) -> GateBase | None:
    limit = settings.max_cpu
    return _pressure(None if limit is None else Pressure(Cpu(), limit, limit * 0.8, _half_of_headroom(limit)), existing)


def _half_of_headroom(share: float) -> float | None:
    return (share + 1) / 2 if share < 1 else None


def _per_client(settings: Settings, existing: GateBase | None) -> GateBase | None:
    return _counting(settings.max_sessions_per_client, existing, MaxSessionsPerKey)


def _change_per_client(gate: MaxSessionsPerKey, settings: Settings) -> None:
    gate.when_full = settings.when_client_full
    _set_limit(gate, settings.max_sessions_per_client)


def _handshakes(settings: Settings, existing: GateBase | None) -> GateBase | None:
    return _counting(settings.max_handshakes_in_progress, existing, HandshakesInProgress)


def _change_handshakes(gate: HandshakesInProgress, settings: Settings) -> None:
    gate.handshake_timeout = settings.handshake_timeout
    _set_limit(gate, settings.max_handshakes_in_progress)


def _sessions(settings: Settings, existing: GateBase | None) -> GateBase | None:
    return _counting(settings.max_sessions, existing, MaxSessions)


def _change_sessions(gate: MaxSessions, settings: Settings) -> None:
    _set_limit(gate, settings.max_sessions)


def _rate(settings: Settings, existing: GateBase | None) -> GateBase | None:
    rate = settings.handshakes_per_second
    return None if rate is None else existing or HandshakeRate(rate)


def _change_rate(gate: HandshakeRate, settings: Settings) -> None:
    gate.rate, gate.burst = settings.handshakes_per_second or 0, settings.handshake_burst
    gate.cap = settings.max_retry_after


def _cluster_per_client(settings: Settings, existing: GateBase | None) -> GateBase | None:
    limit, url = settings.cluster_max_sessions_per_client, settings.redis_url
    if limit is None or url is None:
        return None
    from asgi_closecodes.gates import ClusterSessionsPerKey  # noqa: PLC0415 - only where there is a cluster

    return existing or ClusterSessionsPerKey(limit, url.get_secret_value(), name=settings.cluster_name)


def _change_cluster_per_client(gate: ClusterSessionsPerKey, settings: Settings) -> None:
    gate.lease_duration, gate.fallback = settings.cluster_lease_duration, settings.cluster_fallback
    gate.when_full = settings.when_client_full
    _set_limit(gate, settings.cluster_max_sessions_per_client)


def _cluster(settings: Settings, existing: GateBase | None) -> GateBase | None:
    limit, url = settings.cluster_max_sessions, settings.redis_url
    if limit is None or url is None:
        return None
    from asgi_closecodes.gates import ClusterSessions  # noqa: PLC0415 - only where there is a cluster

    return existing or ClusterSessions(limit, url.get_secret_value(), settings.cluster_name)


def _change_cluster(gate: ClusterSessions, settings: Settings) -> None:
    gate.lease_duration, gate.fallback = settings.cluster_lease_duration, settings.cluster_fallback
    _set_limit(gate, settings.cluster_max_sessions)


@frozen
class DescribedGate:
    """Gate built from settings."""

    settings: tuple[str, ...]
    """Settings that it depends on. The first is its limit and its name."""
    gate: Callable[[Settings, GateBase | None], GateBase | None]
    """Return the gate, unchanged if the existing one still fits; None if not needed."""
    change: Callable[[Any, Settings], None] = lambda _gate, _settings: None
    """Apply the settings to the gate."""

    @property
    def limit(self) -> str:
        """Name of the setting that is its limit."""
        return self.settings[0]


# In the order of admission. The gate of a limit that is set later adopts the sessions that are open.
DESCRIBED = (
    DescribedGate(("max_loop_lag",), _lag),
    DescribedGate(("max_memory",), _memory),
    DescribedGate(("max_cpu",), _cpu),
    DescribedGate(("max_sessions_per_client", "when_client_full"), _per_client, _change_per_client),
    DescribedGate(("max_handshakes_in_progress", "handshake_timeout"), _handshakes, _change_handshakes),
    DescribedGate(("max_sessions",), _sessions, _change_sessions),
    DescribedGate(("handshakes_per_second", "handshake_burst", "max_retry_after"), _rate, _change_rate),
    DescribedGate(
        (
            "cluster_max_sessions_per_client",
            "when_client_full",
            "cluster_lease_duration",
            "cluster_fallback",
            "redis_url",
            "cluster_name",
        ),
        _cluster_per_client,
        _change_cluster_per_client,
    ),
    DescribedGate(
        ("cluster_max_sessions", "cluster_lease_duration", "cluster_fallback", "redis_url", "cluster_name"),
        _cluster,
        _change_cluster,
    ),
)

LIMITS = tuple(described.limit for described in DESCRIBED)
"""Names of the settings that are limits of gates."""


def gates_of(settings: Settings, existing: Mapping[str, GateBase]) -> dict[str, GateBase]:
    """Return the gates for ``settings`` in order of admission, by the name of their limit.

    Gates in ``existing`` that still fit are kept unchanged; :func:`set_limits` changes them.
    """
    gates = {}
    for described in DESCRIBED:
        gate = described.gate(settings, existing.get(described.limit))
        if gate is not None:
            gate.name = described.limit
            gates[described.limit] = gate
    return gates


def set_limits(gates: Mapping[str, GateBase], settings: Settings) -> None:
    """Apply ``settings`` to ``gates``."""
    for described in DESCRIBED:
        if (gate := gates.get(described.limit)) is not None:
            described.change(gate, settings)
