import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.gates import Pressure
from tests.support.fakes import Clock, FakeSensor, FakeSession, admitted, refused


class Trial:
    """A gate that refuses from 0.8, resumes below 0.6 and sheds from 1.2 on."""

    def __init__(self):
        self.clock = Clock()
        self.dial = FakeSensor()
        self.gate = Pressure(self.dial, 0.8, 0.6, 1.2, clock=self.clock)

    async def let_in(self, value, of=100):
        """How many of ``of`` sessions are let in at ``value``."""
        self.dial.shown = value
        return sum([await admitted(self.gate) for _ in range(of)])


@pytest.mark.anyio
async def test_below_the_threshold_all_are_let_in():
    assert await Trial().let_in(0.79) == 100


@pytest.mark.anyio
async def test_pressure_above_threshold_refuses_a_growing_share():
    """From the threshold on a growing share is refused, and in the end all."""
    shares = [await Trial().let_in(value) for value in (0.8, 0.85, 0.9, 0.95, 1.0, 1.1)]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[3] < shares[0] < 100
    assert shares[-2:] == [0, 0]  # 1.25 times the threshold


@pytest.mark.anyio
async def test_first_session_after_the_rise_is_refused():
    assert await Trial().let_in(0.8, of=1) == 0


@pytest.mark.anyio
async def test_pressure_refuses_until_below_low_threshold_and_five_s():
    """Refusing goes on until the value is below the lower threshold, for five seconds at least."""
    trial = Trial()
    await trial.let_in(1.0)
    assert await trial.let_in(0.7) == 0  # in between
    assert await trial.let_in(0.59) == 0  # too soon
    trial.clock.now += 5
    assert await trial.let_in(0.61) == 0
    assert await trial.let_in(0.59) == 100
    assert await trial.let_in(0.7) == 100  # it has ended


@pytest.mark.anyio
async def test_pressure_on_its_way_down_refuses_as_much_as_at_its_top():
    trial = Trial()
    at_its_highest = await trial.let_in(0.9)
    assert 20 < at_its_highest < 80
    assert await trial.let_in(0.7) == pytest.approx(at_its_highest, abs=1)


@pytest.mark.anyio
async def test_pressure_that_never_falls_still_admits_some():
    """A value that never falls does not close the service for ever."""
    trial = Trial()
    assert await trial.let_in(1.1) == 0
    trial.clock.now += 29
    assert await trial.let_in(1.1) == 0
    admitted_by_second = []
    trial.clock.now += 1
    for _ in range(5):
        admitted_by_second.append(await trial.let_in(1.1))
        trial.clock.now += 1
    assert admitted_by_second == [1, 2, 4, 8, 16]


@pytest.mark.anyio
async def test_value_that_grows_again_closes_it_again():
    trial = Trial()
    await trial.let_in(1.1)
    trial.clock.now += 33
    assert await trial.let_in(1.1) > 0
    assert await trial.let_in(1.11) == 0
    trial.clock.now += 29
    assert await trial.let_in(1.1) == 0
    trial.clock.now += 1
    assert await trial.let_in(1.1) == 1


@pytest.mark.anyio
async def test_pressure_that_sheds_admits_nobody():
    trial = Trial()
    trial.clock.now += 100
    assert await trial.let_in(1.2) == 0
    assert trial.gate.excess() > 1_000_000
    trial.clock.now += 100
    assert await trial.let_in(1.2) == 0  # not even after a long time
    trial.dial.shown = 1.19
    assert trial.gate.excess() == 0


@pytest.mark.anyio
async def test_pressure_unknown_refuses_nobody_and_sheds_nobody():
    trial = Trial()
    assert await trial.let_in(None) == 100
    assert trial.gate.excess() == 0
    trial.gate.sample()


@pytest.mark.anyio
async def test_rise_between_two_handshakes_is_seen_by_the_samples():
    trial = Trial()
    trial.dial.shown = 1.0
    trial.gate.sample()
    assert await trial.let_in(0.7, of=1) == 0


@pytest.mark.anyio
async def test_refusal_names_the_sensor_and_its_value():
    trial = Trial()
    trial.dial.shown = 1.0
    refusal = await refused(trial.gate)
    assert (refusal.cause, refusal.usage, refusal.limit, refusal.retry_after) == ("dial", 1.0, 0.8, None)


@pytest.mark.anyio
@pytest.mark.parametrize("shown", [10**400, 1e308, math.inf])
async def test_value_beyond_all_bounds_refuses(shown):
    gate = Pressure(FakeSensor(shown), 0.8, 0.6)
    for _ in range(3):
        assert (await refused(gate)).cause == "dial"


@pytest.mark.parametrize(
    "thresholds",
    [
        (0.8, 0.8), (0.8, 0.9), (0.8, -0.1), (0.8, 0.6, 0.8), (0.8, 0.6, 0.7), (float("nan"), 0.5), (0.8, float("nan")),
        (0.8, 0.6, float("inf")), ("0.8", 0.6), (0, 0),
        (10**400, 0.5), (0.8, -(10**400)), (0.8, 0.6, 10**400), (True, 0),
    ],
)  # fmt: skip
def test_thresholds_that_contradict_each_other_are_refused(thresholds):
    with pytest.raises(ValueError, match="refuse_above="):
        Pressure(FakeSensor(), *thresholds)
    gate = Pressure(FakeSensor(), 0.8, 0.6)
    with pytest.raises(ValueError, match="refuse_above="):
        gate.set(*thresholds)
    assert (gate.refuse_above, gate.resume_below, gate.shed_above) == (0.8, 0.6, None)


@given(st.lists(st.tuples(st.floats(0, 10), st.none() | st.floats(0, 3)), max_size=80))
def test_gate_without_pressure_refuses_nobody(steps):
    clock, dial = Clock(), FakeSensor()
    gate = Pressure(dial, 0.8, 0.6, 1.2, clock=clock)
    high_since = None
    for pause, value in steps:
        clock.now += pause
        dial.shown = value
        if value is not None and value >= 0.8:
            high_since = clock.now
        try:
            gate.admit(FakeSession())
        except Exception:
            assert high_since is not None
            assert value >= 0.6 or clock.now - high_since < 5 or gate._refusing_since is not None
