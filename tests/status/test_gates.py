"""The gates as the status shows them: each by a name of its own, with what is in use beside its own limit."""

import json

import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, StatusApp
from asgi_closecodes.gates import AllOf, LoopLag, MaxSessions, MaxSessionsPerKey, Pressure, Shadow
from tests.support.asgi import get
from tests.support.fakes import ConnectedClients

pytestmark = pytest.mark.anyio


async def gates(guard):
    _, body = await get(StatusApp(guard, authorize=lambda request: True))
    return {gate["name"]: gate for gate in json.loads(body["body"])["gates"]}


@pytest.mark.parametrize("shadow", ["none", "max_sessions_per_client"])
async def test_status_shows_the_busiest_key_beside_its_limit(shadow):
    guard = Guard(Settings(max_sessions_per_client=3, shadow=shadow))
    async with ConnectedClients(guard) as stay:
        for address, count in (("192.0.2.1", 3), ("192.0.2.2", 2), ("192.0.2.3", 1)):
            await stay.come(count, client=(address, 1))
        assert len(guard.sessions) == 6
        gate = (await gates(guard))["max_sessions_per_client"]
        assert (gate["usage"], gate["limit"]) == (3, 3)
    assert (await gates(guard))["max_sessions_per_client"]["usage"] == 0


async def test_status_shows_no_use_of_sessions_without_key():
    """They are not limited, however many they are."""
    guard = Guard(gate=MaxSessionsPerKey(2, key=lambda session: session.key))
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        assert guard.snapshot()["gates"][-1] == {
            "name": "max_sessions_per_key",
            "cause": "client",
            "usage": 0,
            "limit": 2,
            "shadow": False,
        }


async def test_status_gives_each_gate_a_name_of_its_own():
    own = AllOf(MaxSessions(1), MaxSessionsPerKey(2), Shadow(MaxSessions(3)), Pressure(LoopLag(), 1, 0.5))
    guard = Guard(Settings(max_loop_lag=1, max_cpu=0.5, max_sessions=9), gate=own)
    CloseCodeMiddleware(None, guard)
    shown = await gates(guard)
    assert len(shown) == len(guard.snapshot()["gates"]) == 7
    assert {name: gate["limit"] for name, gate in shown.items() if name.startswith("max_sessions")} == {
        "max_sessions": 9,
        "max_sessions_2": 1,
        "max_sessions_per_key": 2,
        "max_sessions_3": 3,
    }
    assert [name for name in shown if "sessions" not in name] == ["max_loop_lag", "max_cpu", "lag"]
