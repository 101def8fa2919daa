import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asgi_closecodes.token_bucket import TokenBucket

gaps = st.lists(st.one_of(st.just(0.0), st.floats(0, 2), st.floats(0, 0.01)), min_size=1, max_size=150)
starts = st.floats(0, 1e6)
rates = st.one_of(st.floats(0.1, 1000), st.integers(1, 500))


class Clock:
    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


@given(rates, st.floats(0, 50), starts, gaps)
def test_no_window_holds_more_than_the_burst_and_the_rate(per_second, burst, start, gaps):
    clock = Clock(start)
    rate = TokenBucket(per_second, burst, clock=clock)
    taken = []
    for gap in gaps:
        clock.now += gap
        if rate.take():
            taken.append(clock.now)
    for first, since in enumerate(taken):
        for count, until in enumerate(taken[first:], 1):
            assert count <= max(burst, 1) + per_second * (until - since) + 1e-3


@given(rates, st.integers(1, 200), starts)
@example(3, 1, 123456.7)
def test_whole_burst_is_let_through_at_once(per_second, burst, start):
    rate = TokenBucket(per_second, burst, clock=Clock(start))
    assert [rate.take() for _ in range(burst + 1)] == [True] * burst + [False]


@given(rates, st.integers(1, 20), starts)
def test_after_a_pause_the_burst_is_back(per_second, burst, start):
    clock = Clock(start)
    rate = TokenBucket(per_second, burst, clock=clock)
    while rate.take():
        pass
    clock.now += 1.001 / per_second
    assert rate.take()
    assert not rate.take()
    clock.now += 1.001 * burst / per_second
    assert sum(rate.take() for _ in range(2 * burst)) == burst


@given(st.floats(1, 100))
def test_bucket_asked_steadily_below_its_rate_never_refuses(per_second):
    clock = Clock(1000.0)
    rate = TokenBucket(per_second, 2, clock=clock)
    for _ in range(100):
        clock.now += 1.001 / per_second
        assert rate.take()


@pytest.mark.parametrize("per_second", [0, 0.0, -1])
def test_rate_of_zero_lets_nothing_through(per_second):
    clock = Clock()
    rate = TokenBucket(per_second, 10, clock=clock)
    for clock.now in (0.0, 1.0, 1e9):
        assert not rate.take()


def test_rate_may_be_changed_while_it_is_used():
    clock = Clock(5.0)
    rate = TokenBucket(0, 0, clock=clock)
    assert not rate.take()
    rate.per_second = rate.burst = 4
    assert [rate.take() for _ in range(5)] == [True] * 4 + [False]
    rate.per_second = 0
    clock.now += 100
    assert not rate.take()


def test_clock_is_the_monotonic_one():
    rate = TokenBucket(0.001, 1)
    assert rate.take()
    assert not rate.take()


# All at once, as sessions are shed


@given(rates, st.lists(st.floats(0, 3), max_size=50))
def test_bucket_empty_takes_no_more_than_its_share(per_second, gaps):
    clock = Clock()
    bucket = TokenBucket(per_second, per_second, is_full=False, clock=clock)
    total = 0
    for gap in gaps:
        clock.now += gap
        total += bucket.take_all()
        assert total <= per_second * clock.now + 1e-3


def test_bucket_small_steps_add_up():
    clock = Clock()
    bucket = TokenBucket(0.7, 0.7, is_full=False, clock=clock)
    due = 0
    for _ in range(100):
        clock.now += 0.1
        due += bucket.take_all()
    assert due in (6, 7)


def test_bucket_after_a_pause_takes_the_burst_alone():
    clock = Clock()
    bucket = TokenBucket(5, 5, is_full=False, clock=clock)
    assert bucket.take_all() == 0
    clock.now += 3600
    assert bucket.take_all() == 5
    assert bucket.take_all() == 0


def test_bucket_infinite_rate_is_a_number():
    """A drain over next to no time asks for it."""
    clock = Clock()
    bucket = TokenBucket(float("inf"), float("inf"), is_full=False, clock=clock)
    assert bucket.take_all() == 0
    clock.now += 1
    assert bucket.take_all() > 10**9
    assert bucket.take_all() == 0


@pytest.mark.parametrize("per_second", [0, -1])
def test_bucket_rate_of_zero_takes_none(per_second):
    assert TokenBucket(per_second, 5).take_all() == 0
