"""The gates that settings describe."""

import pytest

from asgi_closecodes import Guard, Settings, SettingsError
from asgi_closecodes.events import LimitsChanged
from asgi_closecodes.gates import HandshakeRate, Pressure, Shadow
from tests.support.asgi import events_of
from tests.support.fakes import refused


def names(guard):
    return [gate["name"] for gate in guard.snapshot()["gates"]]


def test_gates_without_limits_are_not_shown():
    assert names(Guard(Settings())) == []


def test_limits_are_gates_in_the_order_of_asking():
    limits = {
        "max_sessions": 100,
        "max_sessions_per_client": 5,
        "max_handshakes_in_progress": 10,
        "handshakes_per_second": 20,
        "max_loop_lag": 0.5,
        "max_memory": 0.8,
        "max_cpu": 0.9,
    }
    guard = Guard(Settings(**limits))
    counting = ["max_sessions_per_client", "max_handshakes_in_progress", "max_sessions", "handshakes_per_second"]
    assert names(guard) == ["max_loop_lag", "max_memory", "max_cpu", *counting]
    pressures = [gate for gate in guard.gate.gates if isinstance(gate, Pressure)]
    assert [(gate.cause, gate.refuse_above) for gate in pressures] == [("lag", 0.5), ("memory", 0.8), ("cpu", 0.9)]
    assert all(gate.resume_below < gate.refuse_above < gate.shed_above for gate in pressures)


@pytest.mark.parametrize(("limit", "refuse_above", "sheds"), [(0.8, 0.8, True), (1.0, 1.0, False), ("1GiB", 1.0, True)])
def test_memory_is_a_share_or_a_size(limit, refuse_above, sheds):
    [gate] = [gate for gate in Guard(Settings(max_memory=limit)).gate.gates if isinstance(gate, Pressure)]
    assert gate.refuse_above == refuse_above
    assert (gate.shed_above is not None) is sheds


def test_change_keeps_the_gates_that_count_and_what_they_know():
    seen = []
    guard = Guard(Settings(max_sessions=5, handshakes_per_second=10, max_loop_lag=1), observers=[seen.append])
    lag, sessions, rate = guard.gate.gates
    guard.update(max_sessions=7, handshakes_per_second=20, handshake_burst=3)
    assert guard.gate.gates == (lag, sessions, rate)
    guard.update(max_sessions=None)
    assert guard.gate.gates == (lag, rate)
    assert (rate.rate, rate.burst) == (20, 3)
    guard.update(handshakes_per_second=None, max_loop_lag=2)
    assert "handshakes_per_second" not in names(guard)
    assert guard.snapshot()["gates"][0]["limit"] == 2
    assert events_of(LimitsChanged, seen)[-1].changed == {"handshakes_per_second": None, "max_loop_lag": 2}


def test_change_is_made_as_a_whole_or_not_at_all():
    guard = Guard(Settings(max_sessions=5))
    with pytest.raises(SettingsError):
        guard.update(max_sessions=7, reject_with="no")
    assert guard.settings.max_sessions == 5
    assert guard.snapshot()["gates"][-1]["limit"] == 5


def test_limits_in_the_shadow_only_look():
    guard = Guard(Settings(max_sessions=5, max_sessions_per_client=1, shadow="max_sessions"))
    assert [isinstance(gate, Shadow) for gate in guard.gate.gates] == [False, True]
    [*_, gate] = guard.snapshot()["gates"]
    assert gate == {"name": "max_sessions", "cause": "full", "usage": 0, "limit": 5, "shadow": True}
    guard.update(shadow="")
    assert not any(isinstance(gate, Shadow) for gate in guard.gate.gates)


@pytest.mark.anyio
async def test_longest_hint_is_the_same_for_all():
    guard = Guard(Settings(handshakes_per_second=0, max_retry_after=7))
    [rate] = [gate for gate in guard.gate.gates if isinstance(gate, HandshakeRate)]
    assert (await refused(rate)).retry_after == 7
    assert max(guard.retry_after() for _ in range(200)) <= 7 * 1.1
