import random
from itertools import pairwise
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.guard.retry_after import RetryQueue


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def middle(low, high):
    return (low + high) / 2


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock):
    return RetryQueue(60.0, clock=clock, uniform=middle)


def end_sessions(queue, clock, per_second, seconds=60):
    for _ in range(per_second * seconds):
        clock.now += 1 / per_second
        queue.freed()


def test_each_refusal_is_told_to_come_later_than_the_one_before(queue):
    hints = [queue.hint() for _ in range(59)]
    assert all(earlier < later for earlier, later in pairwise(hints))
    assert hints[0] == pytest.approx(2)


@pytest.mark.parametrize("per_second", [2, 20, 200])
def test_clients_are_told_to_come_as_fast_as_sessions_end(queue, clock, per_second):
    end_sessions(queue, clock, per_second)
    hints = [queue.hint() for _ in range(5 * per_second)]
    assert mean(b - a for a, b in pairwise(hints)) == pytest.approx(1 / per_second, rel=0.05)


def test_retry_after_without_ending_sessions_is_one_a_second(queue):
    hints = [queue.hint() for _ in range(20)]
    assert [b - a for a, b in pairwise(hints)] == pytest.approx([1.0] * 19)


def test_rate_of_ending_sessions_is_forgotten(queue, clock):
    end_sessions(queue, clock, 200)
    clock.now += 20 * queue.MEMORY
    first, second = queue.hint(), queue.hint()
    assert second - first == pytest.approx(1.0)


def test_turns_that_have_come_up_are_given_back(queue, clock):
    for _ in range(30):
        queue.hint()
    clock.now += 10
    assert queue.hint() == pytest.approx(31 + 1 - 10)


def test_hints_beyond_the_cap_are_spread_over_its_upper_half(clock):
    queue = RetryQueue(60.0, clock=clock, uniform=random.Random(7).uniform)
    hints = [queue.hint() for _ in range(2000)][100:]
    assert all(30 <= hint <= 60 for hint in hints)
    for quarter in range(4):
        share = sum(30 + 7.5 * quarter <= hint < 37.5 + 7.5 * quarter for hint in hints) / len(hints)
        assert share == pytest.approx(0.25, abs=0.05)


def test_hints_below_the_cap_are_jittered_by_a_tenth(clock):
    asked = []
    queue = RetryQueue(60.0, clock=clock, uniform=lambda low, high: asked.append((low, high)) or high)
    assert queue.hint() == pytest.approx(2 * 1.1)
    assert asked == [(0.9, 1.1)]


def test_retry_after_gives_no_more_turns_than_fit_the_cap(queue, clock):
    """Those who are told to come back sooner than their place would come up do not hold one."""
    for _ in range(100_000):
        queue.hint()
    clock.now += queue.cap / 2
    assert queue.hint() == pytest.approx(queue.cap / 2 + 1)
    clock.now += queue.cap
    assert queue.hint() == pytest.approx(2)


def test_cap_may_be_changed_while_clients_wait(queue):
    for _ in range(50):
        queue.hint()
    queue.cap = 5.0
    assert queue.hint() == pytest.approx(3.75)


steps = st.lists(
    st.one_of(
        st.just("refused"),
        st.just("freed"),
        st.tuples(st.sampled_from(["refused", "freed"]), st.integers(2, 500)),
        st.floats(0, 1e6),
        st.floats(0, 0.1),
    ),
    max_size=60,
)


@given(st.floats(1, 3600), steps, st.integers(0, 1 << 32))
def test_hint_is_positive_and_at_most_a_tenth_above_the_cap(cap, steps, seed):
    clock = Clock()
    queue = RetryQueue(cap, clock=clock, uniform=random.Random(seed).uniform)
    for step in [*steps, "refused"]:
        match step:
            case float(seconds):
                clock.now += seconds
                continue
            case str(what):
                times = 1
            case (what, times):
                pass
        for _ in range(times):
            if what == "freed":
                queue.freed()
            else:
                assert 0 < queue.hint() <= 1.1 * cap


def test_turns_given_wait_until_they_are_due(queue, clock):
    for _ in range(10):
        queue.hint()  # one a second, the first in two seconds
    waiting = []
    for _ in range(13):
        waiting.append(queue.waiting())
        clock.now += 1
    assert waiting == [10, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]


def test_turns_that_come_later_wait_behind_the_others(queue, clock):
    for _ in range(10):
        queue.hint()
    clock.now += 5
    for _ in range(3):
        queue.hint()
    assert queue.waiting() == 6 + 3
    clock.now += 60
    assert queue.waiting() == 0
    queue.hint()
    assert queue.waiting() == 1


def test_client_refused_without_a_turn_does_not_wait(queue):
    for _ in range(500):
        queue.hint()
    assert queue.waiting() == 59


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["hint", "end"])), max_size=200))
def test_as_many_wait_as_have_turns_and_no_more(steps):
    clock = Clock()
    queue = RetryQueue(60.0, clock=clock, uniform=middle)
    turns = []
    for pause, what in steps:
        clock.now += pause
        if what == "end":
            queue.freed()
        elif queue._slot != (queue.hint(), queue._slot)[1]:
            turns.append(queue._slot)
        assert 0 <= queue.waiting() <= len(turns)
        if turns and clock.now > turns[-1]:
            assert queue.waiting() == 0
