"""The rounds against a process that gives memory back as it likes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.gates.rounds import SETTLE_S, Phase, Rounds
from tests.support.fakes import Clock

TICK_S = 0.1
BASE = 0.3


class FakeProcess:
    """Sessions that hold memory and give a share of it back, and memory that is nobody's; driven as a guard does."""

    def __init__(self, sessions=1000, held=0.9, leaked=0.0, returns=1.0, cleanup=0.0, knows_base=True, trim=0.2):
        self.clock = Clock()
        self.rounds = Rounds(self.clock)
        self.rounds.baseline = BASE if knows_base else None
        self.open = sessions
        self.each = held / sessions
        self.leaked = leaked
        self.returns = returns
        self.cleanup, self.trim = cleanup, trim
        self.leaving = []  # when each is released
        self.freed = 0.0
        self.resident = BASE + held
        self.trimmed_at = None
        self.phases = [Phase.WATCHING]
        self.starts = []  # open sessions, and how many were shed in the round
        self.before_shed = 0

    @property
    def usage(self):
        return self.resident + self.leaked

    def tick(self, pace=5):
        self.clock.now += TICK_S
        gone = [at for at in self.leaving if at <= self.clock.now]
        self.leaving = [at for at in self.leaving if at > self.clock.now]
        self.freed += len(gone) * self.each * self.returns
        is_returning = self.trimmed_at is not None and self.clock.now < self.trimmed_at
        phase = self.rounds.advance(
            self.usage,
            shed_above=1.1,
            limit=1.0,
            open_sessions=self.open,
            unreleased=len(self.leaving),
            release_timeout=20,
            is_returning=is_returning,
        )
        if phase is not self.phases[-1]:
            self.phases.append(phase)
            if phase is Phase.SHEDDING:
                self.starts.append([self.open, 0])
            if phase is Phase.RETURNING:
                self.resident -= self.freed
                self.freed = 0.0
                self.trimmed_at = self.clock.now + self.trim
        if now := min(self.rounds.remaining, pace):
            self.open -= now
            self.starts[-1][1] += now
            self.leaving += [self.clock.now + self.cleanup] * now
            self.rounds.record_shed(now)

    def run(self, seconds=300, pace=5):
        for _ in range(int(seconds / TICK_S)):
            self.tick(pace)
        return self

    @property
    def is_futile(self):
        return self.rounds.phase is Phase.FUTILE


def test_rounds_below_the_threshold_shed_nobody():
    process = FakeProcess(held=0.79).run()
    assert process.phases == [Phase.WATCHING]


def test_rounds_of_an_unknown_usage_shed_nobody():
    rounds = Rounds(Clock())
    known = {"shed_above": 1.1, "limit": 1.0, "open_sessions": 9, "unreleased": 0, "release_timeout": 1}
    assert rounds.advance(None, **known, is_returning=False) is Phase.WATCHING
    assert rounds.advance(9.0, **known | {"shed_above": None}, is_returning=False) is Phase.WATCHING
    assert rounds.advance(9.0, **known | {"open_sessions": 0}, is_returning=False) is Phase.WATCHING


def test_rounds_that_bring_memory_back_stop_at_the_threshold():
    process = FakeProcess().run()
    assert process.phases[-1] is Phase.WATCHING
    assert 700 <= process.open < 1000
    assert process.usage < 1.1
    assert process.usage > 1.1 - 0.05 * 0.9


@pytest.mark.parametrize("leaked", [0.3, 0.7, 2, 50])
@pytest.mark.parametrize("returns", [0.0, 0.2, 0.5])
def test_rounds_for_leaked_memory_end_at_10_percent(leaked, returns):
    """Whatever is leaked, where the sessions cannot make up for it."""
    process = FakeProcess(held=0.9, leaked=leaked, returns=returns).run()
    assert process.is_futile
    assert process.open >= 900
    assert process.rounds.shed == 1000 - process.open
    assert process.phases.count(Phase.FUTILE) == 1


def test_rounds_end_where_the_limit_is_below_the_baseline():
    """All that the sessions hold comes back, and would not do."""
    process = FakeProcess(held=0.2, leaked=0.9)
    process.rounds.baseline = 1.2
    process.run()
    assert process.is_futile
    assert process.open >= 900


@pytest.mark.parametrize("held", [0.9, 1.2, 1.6])
def test_rounds_of_honest_sessions_shed_as_many_as_it_takes(held):
    """A limit that more than half of them have to go for is none that cannot be won."""
    process = FakeProcess(held=held).run(2000)
    assert not process.is_futile
    assert process.usage < 1.1


def test_rounds_without_a_baseline_go_by_what_is_still_to_go():
    assert FakeProcess(held=0.95, returns=0.6, knows_base=False).run().phases[-1] is Phase.WATCHING
    process = FakeProcess(held=0.95, leaked=1, returns=0.6, knows_base=False).run()
    assert process.is_futile
    assert process.open >= 900


def test_rounds_wait_for_handlers_that_clean_up():
    process = FakeProcess(cleanup=8).run(7.9)
    assert process.phases == [Phase.WATCHING, Phase.SHEDDING, Phase.RELEASING]
    process.run()
    assert process.phases[-1] is Phase.WATCHING
    assert process.usage < 1.1


def test_rounds_with_hanging_handlers_wait_at_most_as_allowed():
    process = FakeProcess(cleanup=1e9).run(19)
    assert process.phases[-1] is Phase.RELEASING
    process.run(60)
    assert process.is_futile
    assert process.open == 903  # 5 % of 1000 and of 950


def test_rounds_wait_for_the_return_and_let_it_settle():
    process = FakeProcess(trim=5)
    while Phase.RETURNING not in process.phases:
        process.tick()
    start = process.clock.now
    while process.phases[-1] is Phase.RETURNING:
        process.tick()
    assert process.clock.now - start >= 5
    assert process.phases[-1] is Phase.SETTLING
    start = process.clock.now
    while process.phases[-1] is Phase.SETTLING:
        process.tick()
    assert process.clock.now - start >= SETTLE_S - TICK_S / 2


def test_rounds_end_early_where_usage_falls_by_itself():
    process = FakeProcess(sessions=10_000)
    process.tick()
    assert process.phases[-1] is Phase.SHEDDING
    process.resident = 0.5
    process.run()
    assert process.phases[-1] is Phase.WATCHING
    assert process.open > 9_900


def test_rounds_try_anew_once_usage_was_below_the_limit():
    process = FakeProcess(leaked=2, returns=0).run()
    assert process.is_futile
    left = process.open
    process.leaked = -0.12  # in between: not below the limit
    process.run(10)
    process.leaked = 2
    process.run()
    assert process.open == left
    process.leaked = -0.5
    process.run(1)
    assert process.rounds.phase is Phase.WATCHING
    process.leaked = 2
    process.run()
    assert process.open < left
    assert process.phases.count(Phase.FUTILE) == 2


def test_rounds_at_the_threshold_do_not_begin_again_and_again():
    """A leak that comes back above the threshold after each round is the same one."""
    process = FakeProcess(held=0.8, returns=0.1)
    for _ in range(50):
        process.leaked += 1.1005 - process.usage
        process.run(20)
    assert process.open >= 900
    assert process.is_futile


def test_good_round_forgives_a_poor_one():
    process = FakeProcess(held=1.5, returns=0.1)
    for returns in (0.1, 1, 0.1, 1, 0.1, 1):
        process.returns = returns
        rounds = len(process.starts)
        while len(process.starts) == rounds:
            process.tick()
    process.tick()
    assert not process.is_futile


@given(
    sessions=st.integers(1, 3000),
    held=st.floats(0, 5),
    leaked=st.floats(0, 5),
    returns=st.floats(0, 1),
    cleanup=st.sampled_from([0, 3, 8, 100]),
    knows_base=st.booleans(),
    pace=st.integers(1, 100),
)
def test_rounds_of_any_process_keep_their_promises(sessions, held, leaked, returns, cleanup, knows_base, pace):
    process = FakeProcess(sessions, held, leaked, returns, cleanup, knows_base)
    process.run(200, pace)
    for open_sessions, shed in process.starts:
        assert shed <= max(0.05 * open_sessions, 1)
    assert sum(shed for _, shed in process.starts) == sessions - process.open
    order = [Phase.WATCHING, Phase.SHEDDING, Phase.RELEASING, Phase.RETURNING, Phase.SETTLING]
    for before, after in zip(process.phases, process.phases[1:], strict=False):
        if after not in (Phase.FUTILE, Phase.SHEDDING, Phase.WATCHING):
            assert order.index(after) == order.index(before) + 1
        else:
            assert before in (Phase.WATCHING, Phase.SETTLING)
    assert process.phases.count(Phase.FUTILE) <= 1  # it never falls below the limit and rises anew
    if process.is_futile:
        assert len(process.starts) >= 2
    if returns < 0.2 and knows_base:
        assert len(process.starts) <= 2
