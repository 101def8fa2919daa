"""However many there are, lines and counts add up."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.logs import sampling
from asgi_closecodes.logs.sampling import FORGET_AFTER_S, SUMMARY_AFTER_S, LogSampler
from asgi_closecodes.token_bucket import FixedWindow, TokenBucket, Unlimited


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def limited(clock, *, burst=10, per_minute=10, overall=50):
    return LogSampler(
        lambda: TokenBucket(per_minute / 60, burst, clock=clock),
        TokenBucket(per_minute, overall, clock=clock),
        clock=clock,
    )


def take(tested, *key):
    return tested.check(key, lambda: key)


def test_sampler_writes_ten_then_ten_a_minute_with_counts():
    """The first ten are written, then ten a minute, each with the count of those before it."""
    clock = Clock()
    tested = limited(clock)
    assert [take(tested, "error", "a") for _ in range(15)] == [0] * 10 + [None] * 5
    clock.now += 6
    assert [take(tested, "error", "a") for _ in range(2)] == [5, None]
    clock.now += 600
    assert [take(tested, "error", "a") for _ in range(11)] == [1] + [0] * 9 + [None]


def test_first_of_a_kind_is_written_among_any_number_of_others():
    tested = limited(Clock())
    assert {take(tested, "error", number) for number in range(1000)} == {0}
    assert take(tested, "error", 0) is None


def test_sampler_sums_up_what_no_record_has_carried():
    clock = Clock()
    tested = limited(clock)
    for kind in "a" * 13 + "b" * 10:
        take(tested, "error", kind)
    assert tested.pending
    clock.now += SUMMARY_AFTER_S - 1
    assert list(tested.flush()) == []
    clock.now += 1
    assert list(tested.flush()) == [(("error", "a"), False, 3)]
    assert not tested.pending
    assert list(tested.flush(now=True)) == []


def test_kinds_beyond_the_memory_merge_by_their_first_part(monkeypatch):
    monkeypatch.setattr(sampling, "MAX_KINDS", 5)
    tested = limited(Clock())
    written = [take(tested, name, number) for number in range(20) for name in ("error", "refusal")]
    assert written.count(0) == 5 + 2 * 10
    counts = {about[0]: (is_rest, count) for about, is_rest, count in tested.flush(now=True)}
    assert counts == {"error": (True, 7), "refusal": (True, 8)}


def test_kind_that_has_been_quiet_makes_room(monkeypatch):
    monkeypatch.setattr(sampling, "MAX_KINDS", 5)
    clock = Clock()
    tested = limited(clock, burst=1)
    for number in range(5):
        take(tested, "error", number)
    take(tested, "error", 0)
    clock.now += FORGET_AFTER_S + 1
    assert take(tested, "error", 99) == 0
    assert take(tested, "error", 99) is None  # as itself: it has an allowance of its own
    assert Counter(about for about, _, _ in tested.flush(now=True)) == {("error", 0): 1, ("error", 99): 1}


def test_limits_may_change_and_what_was_counted_stays_counted():
    clock = Clock()
    tested = limited(clock, burst=1)
    assert [take(tested, "error", "a") for _ in range(3)] == [0, None, None]
    tested.limit(Unlimited)
    assert [take(tested, "error", "a") for _ in range(3)] == [2, 0, 0]


@pytest.mark.parametrize("most", [1, 3, 1024])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from("ex"), st.integers(0, 6)),
            st.floats(0, 70),
            st.sampled_from(["look", "now", "wide", "narrow", "window"]),
        ),
        max_size=200,
    )
)
def test_lines_and_counts_add_up(most, steps):
    clock = Clock()
    tested = limited(clock, burst=2)
    happened, told = Counter(), Counter()
    before, sampling.MAX_KINDS = sampling.MAX_KINDS, most
    try:
        for step in [*steps, "now"]:
            match step:
                case (name, number):
                    happened[name] += 1
                    count = tested.check((name, number), lambda name=name: name)
                    told[name] += 0 if count is None else 1 + count
                case float():
                    clock.now += step
                case "look" | "now":
                    for name, _, count in tested.flush(now=step == "now"):
                        assert count > 0
                        told[name] += count
                case "wide":
                    tested.limit(Unlimited)
                case "narrow":
                    tested.limit(lambda: TokenBucket(0.01, 1, clock=clock), TokenBucket(1, 2, clock=clock))
                case "window":
                    tested.limit(lambda: FixedWindow(2, 10.0, clock=clock))
            assert len(tested._kinds) <= most + 2
    finally:
        sampling.MAX_KINDS = before
    assert +told == +happened
