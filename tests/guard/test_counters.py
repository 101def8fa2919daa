"""What a guard counts, and when it says that a gate is saturated."""

import logging

import anyio
import pytest

from asgi_closecodes import Close, CloseCodeMiddleware, Guard, Settings, events
from asgi_closecodes.gates import MaxSessions, MaxSessionsPerKey, Shadow
from asgi_closecodes.guard import counters, saturation
from asgi_closecodes.guard.counters import Counters
from asgi_closecodes.guard.saturation import Saturation
from tests.support.asgi import Handler, Peer, events_of
from tests.support.every_event import FACTS
from tests.support.fakes import wait_until

pytestmark = pytest.mark.jumping_clock


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(counters, "time", clock)
    monkeypatch.setattr(saturation, "time", clock)
    return clock


def refused(gate="max_sessions", cause="full", mode="close", is_overload=True):
    return events.SessionRefused(FACTS, Close(1013), gate, cause, 1.0, mode, 5, 5, is_overload)


def test_spell_of_refusals_begins_once_and_ends_once(clock):
    seen = []
    saturation = Saturation(seen.append, lambda gate: False)
    for _ in range(3):
        saturation.refused(refused())
        clock.now += 2
    saturation.check()
    assert seen == [events.GateSaturated("max_sessions", "full", 5, 5)]
    assert saturation.is_watched
    clock.now += 7.9
    saturation.check()
    assert len(seen) == 1
    clock.now += 0.2
    saturation.check()
    assert seen[1:] == [events.GateRecovered("max_sessions", "full", 3, 4.0)]
    assert not saturation.is_watched
    saturation.refused(refused())
    assert seen[2:] == seen[:1]


def test_gate_that_is_full_has_not_recovered(clock):
    """Also if nobody comes, so that it refuses nobody."""
    seen, full = [], {"max_memory"}
    saturation = Saturation(seen.append, full.__contains__)
    saturation.refused(refused("max_memory", "memory"))
    saturation.refused(refused())
    clock.now += 60
    saturation.check()
    assert [event.gate for event in events_of(events.GateRecovered, seen)] == ["max_sessions"]
    full.clear()
    saturation.check()
    assert [event.gate for event in events_of(events.GateRecovered, seen)] == ["max_sessions", "max_memory"]
    assert not saturation.is_watched


def test_gates_of_one_name_are_told_apart_by_their_cause(clock):
    seen = []
    saturation = Saturation(seen.append, lambda gate: False)
    for cause in ("lag", "memory", "lag"):
        saturation.refused(refused("pressure", cause))
    assert [(event.gate, event.cause) for event in seen] == [("pressure", "lag"), ("pressure", "memory")]


@pytest.mark.parametrize("event", [refused(is_overload=False), refused(mode="shadow")])
def test_refusal_of_no_overload_or_a_shadow_is_no_saturation(event):
    saturation = Saturation(lambda event: 1 / 0, lambda gate: False)
    saturation.refused(event)
    assert not saturation.is_watched


def failed(fingerprint, ref):
    return events.SessionFailed(FACTS, ref, fingerprint, ValueError(), Close(1011), True)


def test_snapshot_groups_errors_by_bug_the_latest_first(clock):
    counts = Counters()
    for number, fingerprint in enumerate("abca"):
        clock.now += 1
        counts.failed(failed(fingerprint, f"ref{number}"))
    assert [(group["fingerprint"], group["count"], group["ref"]) for group in counts.groups()] == [
        ("a", 2, "ref3"),
        ("c", 1, "ref2"),
        ("b", 1, "ref1"),
    ]
    assert counts.groups()[0] == {
        "fingerprint": "a",
        "type": "ValueError",
        "count": 2,
        "route": "/rooms/{id}",
        "ref": "ref3",
        "last_seen": 104.0,
    }


def test_counters_remembers_the_latest_bugs_only():
    counts = Counters()
    for number in range(1000):
        counts.failed(failed(str(number), "ref"))
    assert counts.errors == 1000
    assert [group["fingerprint"] for group in counts.groups()] == [str(number) for number in range(999, 979, -1)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "gate_of", [lambda: MaxSessions(0), lambda: MaxSessionsPerKey(0), lambda: Shadow(MaxSessions(0))]
)
async def test_recovery_without_lifespan_or_sessions_is_noticed(gate_of, monkeypatch, caplog):
    gate = gate_of()
    monkeypatch.setattr(saturation, "RECOVERED_AFTER_S", 0.2)
    caplog.set_level(logging.INFO, "asgi_closecodes")
    seen = []
    guard = Guard(Settings(), gate=gate, observers=[seen.append])
    with anyio.CancelScope() as scope:
        await Peer().visit(CloseCodeMiddleware(Handler(), guard))
        if isinstance(gate, MaxSessions):
            await wait_until(lambda: events_of(events.GateSaturated, seen))
            await anyio.sleep(0.5)
            assert not events_of(events.GateRecovered, seen)  # nobody comes, and nobody could come in
            gate.limit = 1
            await wait_until(lambda: events_of(events.GateRecovered, seen))
            assert "gate max_sessions saturated: full" in caplog.messages
            assert "gate max_sessions recovered: full; it refused 1 in 0.0 s" in caplog.messages
        else:
            assert not events_of(events.GateSaturated, seen)
        scope.cancel()
