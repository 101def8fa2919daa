"""Whatever happens, every place is given back, once."""

import random
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, TryAgainLater
from asgi_closecodes.gates import (
    AllOf,
    HandshakeRate,
    HandshakesInProgress,
    MaxSessions,
    MaxSessionsPerKey,
    Pressure,
    Shadow,
    client_network,
)
from tests.support.fakes import FakeSensor, StayingClient


class Slow:
    """A user's gate that waits on its way in and out, and sometimes fails."""

    def __init__(self, rng=None, failing=0.0):
        self.inside = 0
        self.rng = rng or random.Random(1)
        self.failing = failing

    @asynccontextmanager
    async def admit(self, _session):
        await self.stumble()
        self.inside += 1
        try:
            await self.stumble()
            yield
            await self.stumble()
        finally:
            self.inside -= 1

    async def stumble(self):
        for _ in range(self.rng.randrange(3)):
            await anyio.lowlevel.checkpoint()
        if self.rng.random() < self.failing:
            raise self.rng.choice([ValueError("the gate"), TryAgainLater(cause="slow")])


def counters(gate):
    """All counts of ``gate`` and of what it consists of."""
    for inner in getattr(gate, "gates", ()):
        yield from counters(inner)
    if isinstance(gate, Shadow):
        yield from counters(gate.gate)
    if isinstance(gate, Slow):
        yield gate.inside
    if isinstance(gate, (MaxSessions, MaxSessionsPerKey, HandshakesInProgress)):
        yield gate.usage
    if isinstance(gate, MaxSessionsPerKey):
        yield len(gate._sessions)


# Any gates, any composition, limits that change, cancellations, failures

small = st.none() | st.integers(0, 4)
gates = st.deferred(
    lambda: (
        st.builds(MaxSessions, small, st.sampled_from([None, {1: 0.5}]))
        | st.builds(
            MaxSessionsPerKey,
            small,
            st.sampled_from([client_network, lambda session: session.key]),
            when_full=st.sampled_from(["refuse", "replace_oldest"]),
        )
        | st.builds(HandshakesInProgress, small)
        | st.builds(lambda: HandshakeRate(1000, 3, ramp=0))
        | st.builds(lambda shown: Pressure(FakeSensor(shown), 0.8, 0.5, 2), st.sampled_from([0.0, 0.9, None]))
        | st.builds(lambda seed: Slow(random.Random(seed), 0.2), st.integers(0, 99))
        | st.builds(Shadow, gates)
        | st.builds(
            lambda inner, failure: AllOf(*inner, failure=failure),
            st.lists(gates, max_size=3),
            st.sampled_from(["open", "closed"]),
        )
    )
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["cancel", "leave", "shed"]), st.integers(0, 20)),
        st.tuples(st.just("limit"), small),
        st.tuples(st.just("key"), st.integers(0, 20)),
        st.tuples(st.just("wait"), st.integers(1, 5)),
    ),
    max_size=40,
)


def limited(gate):
    for inner in getattr(gate, "gates", ()):
        yield from limited(inner)
    if isinstance(gate, Shadow):
        yield from limited(gate.gate)
    if isinstance(gate, (MaxSessions, MaxSessionsPerKey, HandshakesInProgress)):
        yield gate


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(gate=gates, steps=steps)
@settings(max_examples=100, deadline=None)
def test_no_gate_and_no_composition_loses_a_permit(backend, gate, steps):
    async def main():
        guard = Guard(Settings(shed_grace=0.001, shed_rate=1000), gate=gate)
        inside = []

        async def handler(scope, receive, send):
            await receive()
            inside[-1:] = [(*inside[-1][:2], scope["extensions"]["closecodes"])] if inside else []
            await send({"type": "websocket.accept"})
            while (await receive())["type"] != "websocket.disconnect":
                pass

        app = CloseCodeMiddleware(handler, guard)

        async def visit(number):
            gone = anyio.Event()
            peer = StayingClient(gone, client=(f"192.0.2.{number}", 1))
            with anyio.CancelScope() as scope:
                inside.append((scope, gone, None))
                await peer.visit(app)

        async with anyio.create_task_group() as tasks:
            for step, number in steps:
                if step == "come":
                    tasks.start_soon(visit, number)
                elif step == "limit":
                    for one in limited(gate):
                        one.limit = number
                elif step == "wait":
                    for _ in range(number):
                        await anyio.lowlevel.checkpoint()
                elif inside:
                    scope, gone, session = inside[number % len(inside)]
                    if step == "cancel":
                        scope.cancel()
                    elif step == "leave":
                        gone.set()
                    elif session is not None and step == "key":
                        with suppress(TryAgainLater):
                            session.key = number % 3
                    elif session is not None:
                        tasks.start_soon(session.shed)
            for _ in range(20):  # all that came are in by then
                await anyio.lowlevel.checkpoint()
            for _scope, gone, _session in inside:
                gone.set()
            tasks.cancel_scope.deadline = anyio.current_time() + 1
        assert not guard.sessions
        assert not guard._leaving
        assert set(counters(guard.gate)) <= {0}

    anyio.run(main, backend=backend)
