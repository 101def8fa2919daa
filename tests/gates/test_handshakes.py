import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.gates import HandshakeRate, HandshakesInProgress
from tests.support.fakes import Clock, FakeSession, admitted, refused

# HandshakesInProgress


@pytest.mark.anyio
async def test_permit_is_free_once_the_handshake_is_answered():
    gate = HandshakesInProgress(1)
    first, second = FakeSession(), FakeSession()
    place = gate.admit(first)
    await place.__aenter__()
    refusal = await refused(gate, second)
    assert (refusal.cause, refusal.usage, refusal.limit) == ("setup", 1, 1)
    first.answer()
    assert gate.usage == 0
    assert await admitted(gate, second)
    await place.__aexit__(None, None, None)  # the session is over: nothing is given back a second time
    assert gate.usage == 1


@pytest.mark.anyio
async def test_handshake_never_answered_releases_its_permit_at_its_end():
    gate = HandshakesInProgress(1)
    async with gate.admit(FakeSession()):
        assert gate.usage == 1
    assert gate.usage == 0


@pytest.mark.anyio
async def test_handshakes_that_take_too_long_are_expired():
    clock = Clock()
    gate = HandshakesInProgress(5, handshake_timeout=10, clock=clock)
    slow, answered, young = FakeSession(), FakeSession(), FakeSession()
    assert await admitted(gate, slow)
    assert await admitted(gate, answered)
    answered.answer()
    clock.now += 5
    assert await admitted(gate, young)
    assert list(gate.expired()) == []
    clock.now += 5
    assert list(gate.expired()) == [slow]
    gate.limit = None
    assert list(gate.expired()) == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "10", None, True, 10**40])
def test_timeout_is_a_number_of_seconds(timeout):
    with pytest.raises(ValueError, match=f"handshake_timeout={timeout!r}: use a number of seconds above 0"):
        HandshakesInProgress(1, handshake_timeout=timeout)


@given(
    st.lists(st.tuples(st.sampled_from(["come", "answer", "end"]), st.integers(0, 9)), max_size=60), st.integers(0, 4)
)
def test_in_progress_counts_what_is_neither_answered_nor_ended(steps, limit):
    gate = HandshakesInProgress(limit)
    inside, waiting = {}, set()
    for step, number in steps:
        if step == "come" and number not in inside:
            session = FakeSession()
            place = gate.admit(session)
            try:
                place.__aenter__().send(None)
            except StopIteration:
                assert len(waiting) < limit
                inside[number] = session, place
                waiting.add(number)
            except Exception:
                assert len(waiting) == limit
        elif step == "answer" and number in inside:
            inside[number][0].answer()
            waiting.discard(number)
        elif step == "end" and number in inside:
            with pytest.raises(StopIteration):
                inside.pop(number)[1].__aexit__(None, None, None).send(None)
            waiting.discard(number)
        assert gate.usage == len(waiting)


# HandshakeRate


@pytest.mark.anyio
async def test_so_many_a_second_and_a_burst():
    clock = Clock()
    gate = HandshakeRate(10, burst=3, ramp=0, clock=clock)
    assert [await admitted(gate) for _ in range(4)] == [True, True, True, False]
    clock.now += 0.1001
    assert [await admitted(gate) for _ in range(2)] == [True, False]
    clock.now += 100
    assert [await admitted(gate) for _ in range(4)] == [True, True, True, False]


@pytest.mark.anyio
async def test_retry_delay_is_exact_and_each_client_has_its_turn():
    """The delay is exact, and each refused client has a turn of its own."""
    clock = Clock()
    gate = HandshakeRate(10, burst=1, ramp=0, clock=clock)
    assert await admitted(gate)
    delays = [(await refused(gate)).retry_after for _ in range(3)]
    assert delays == pytest.approx([0.1, 0.2, 0.3])
    clock.now += 0.1001
    assert await admitted(gate)
    assert (await refused(gate)).retry_after == pytest.approx(0.3, abs=0.001)


@pytest.mark.anyio
async def test_rate_grows_from_a_third_after_the_start():
    clock = Clock()
    gate = HandshakeRate(30, burst=1, ramp=30, clock=clock)
    assert await admitted(gate)
    assert (await refused(gate)).retry_after == pytest.approx(1 / 10)
    clock.now += 15
    assert await admitted(gate)
    assert (await refused(gate)).retry_after == pytest.approx(1 / 20)
    clock.now += 15
    assert await admitted(gate)
    assert (await refused(gate)).retry_after == pytest.approx(1 / 30)


@pytest.mark.anyio
async def test_rate_of_zero_admits_nobody_and_says_the_longest_delay():
    gate = HandshakeRate(0, cap=45)
    refusal = await refused(gate)
    assert (refusal.retry_after, refusal.cause) == (45, "rate")


@pytest.mark.anyio
async def test_beyond_the_cap_turns_are_spread_over_its_upper_half():
    clock = Clock()
    gate = HandshakeRate(1, burst=1, ramp=0, cap=10, clock=clock)
    assert await admitted(gate)
    delays = [(await refused(gate)).retry_after for _ in range(1000)]
    assert all(0 < delay <= 10 for delay in delays)
    assert len(set(delays[10:])) > 900
    assert min(delays[10:]) >= 5
    clock.now += 10 + 1  # the cap at most, also for those who never come back
    assert await admitted(gate)
    assert (await refused(gate)).retry_after <= 2


@pytest.mark.anyio
async def test_handshake_rate_may_be_changed_while_it_is_used():
    clock = Clock()
    gate = HandshakeRate(1, burst=1, ramp=0, clock=clock)
    assert await admitted(gate)
    gate.rate = 100
    clock.now += 0.011
    assert await admitted(gate)


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf"), "10", None, True, 10**40])
def test_rate_is_a_number_a_second(rate):
    with pytest.raises(ValueError, match=f"rate={rate!r}"):
        HandshakeRate(rate)


@pytest.mark.parametrize("burst", [0, 0.5, -1, float("nan"), "10", True, 10**40])
def test_burst_is_a_number_of_sessions(burst):
    with pytest.raises(ValueError, match=f"burst={burst!r}"):
        HandshakeRate(1, burst)


@pytest.mark.parametrize("name", ["ramp", "cap"])
@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "10", 10**40])
def test_ramp_and_a_cap_are_numbers_of_seconds(name, seconds):
    with pytest.raises(ValueError, match=f"{name}={seconds!r}"):
        HandshakeRate(1, **{name: seconds})


@pytest.mark.anyio
async def test_storm_that_follows_hints_is_admitted_nearly_optimally():
    """2 000 clients at once, 50 a second: 39 s at least, as the first 50 come in at once."""
    clock = Clock(0.0)
    gate = HandshakeRate(50, ramp=0, clock=clock)
    rng = random.Random(7)
    due = [(0.0, client) for client in range(2000)]
    attempts = [0] * 2000
    last = 0.0
    import heapq

    heapq.heapify(due)
    while due:
        clock.now, client = heapq.heappop(due)
        attempts[client] += 1
        try:
            await gate.admit(FakeSession()).__aenter__()
            last = clock.now
        except Exception as refusal:
            jitter = rng.uniform(0, min(60, 2 ** (attempts[client] - 1)))
            heapq.heappush(due, (clock.now + max(refusal.retry_after, jitter), client))
    assert sum(attempts) / 2000 <= 3
    assert last <= 1.2 * 40
