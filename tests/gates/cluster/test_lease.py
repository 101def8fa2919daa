"""Leases and the real script, on a real server with a clock of ours: the limit holds, whatever is lost on the way."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asgi_closecodes.gates.cluster.lease import FALLBACK_SHARE

from .fake_cluster import KEYS, TTL, Cluster


@pytest.fixture
def cluster(each_server):
    with each_server.client() as client:
        yield Cluster(client)


def fill(cluster, *workers, demand=100):
    """Let sessions come to ``workers`` until the cluster is full."""
    for _ in range(20):
        for worker in workers:
            worker.waiting = demand
            cluster.sync(worker)
            worker.waiting = 0
            while worker.acquire():
                demand -= 1
        if sum(worker.used for worker in workers) >= cluster.limit or not demand:
            return


def outage(cluster, workers, seconds):
    """Let ``workers`` sync in vain for so long."""
    for _ in range(round(seconds)):
        for worker in workers:
            worker.ask()
        cluster.now += 1
        for worker in workers:
            worker.fail()


def test_first_worker_gets_what_it_needs_at_once(cluster):
    worker = cluster.worker()
    worker.waiting = 7
    reply = cluster.sync(worker)
    assert 7 <= reply.quota <= 20
    assert [worker.acquire() for _ in range(7)] == [True] * 7


def test_limit_is_reached_and_not_passed(cluster):
    workers = [cluster.worker() for _ in range(4)]
    fill(cluster, *workers)
    assert sum(worker.used for worker in workers) == 20
    assert not any(worker.acquire() for worker in workers)


def test_permits_in_advance_are_a_part_of_what_is_left(cluster):
    cluster.limit = 1000
    workers = [cluster.worker() for _ in range(10)]
    for _ in range(3):
        for worker in workers:
            cluster.sync(worker)
    assert all(1 <= worker.quota <= 64 for worker in workers)


def test_dead_workers_permits_return_after_the_ttl(cluster):
    dead, alive = cluster.worker(), cluster.worker()
    cluster.sync(alive)
    fill(cluster, dead)
    cluster.sync(alive)
    held = dead.used
    start = cluster.now
    while alive.used < 20 and cluster.now < start + 100:
        cluster.now += 0.5
        alive.waiting = 30
        cluster.sync(alive)
        alive.waiting = 0
        while alive.acquire():
            pass
    assert held >= 19
    assert alive.used == 20
    assert TTL * 0.95 < cluster.now - start <= TTL + 1


def test_leaving_workers_permits_return_at_once(cluster):
    leaving, other = cluster.worker(), cluster.worker()
    cluster.sync(leaving)
    assert leaving.quota > 0
    cluster.sync(leaving, leave=True)
    assert cluster.grants() == {}
    assert cluster.sync(other).workers == 1


def test_sessions_that_outlive_their_worker_stay_counted(cluster):
    leaving, other = cluster.worker(), cluster.worker()
    fill(cluster, leaving)
    cluster.sync(leaving, leave=True)
    other.waiting = 5
    assert cluster.sync(other).quota == 20 - leaving.used


def test_unanswered_sync_promises_nothing(cluster):
    worker = cluster.worker()
    worker.waiting = 5
    cluster.deliver(worker.ask())
    worker.fail()
    assert worker.quota == 0
    assert not worker.acquire()
    cluster.sync(worker)
    assert worker.quota >= 5


def test_late_answer_is_of_no_worth(cluster):
    worker = cluster.worker()
    worker.waiting = 5
    late = cluster.deliver(worker.ask())
    worker.fail()
    worker.waiting = 1
    request = worker.ask()
    worker.answer(late)
    assert worker.quota == 0
    worker.answer(cluster.deliver(request))
    assert worker.quota >= 1


def test_doubled_or_late_sync_changes_nothing(cluster):
    worker = cluster.worker()
    cluster.sync(worker)
    early = worker.ask()
    worker.fail()
    cluster.sync(worker)
    before = cluster.grants()
    cluster.deliver(early)
    assert cluster.grants() == before


def test_process_that_was_stopped_refuses_until_it_has_synced(cluster):
    stopped, other = cluster.worker(fallback="open"), cluster.worker()
    stopped.waiting = 5
    cluster.sync(stopped)
    cluster.now += 2 * TTL
    fill(cluster, other)
    assert not stopped.acquire()
    cluster.sync(stopped)
    while stopped.acquire():
        pass
    assert stopped.used + other.used <= 20


def test_sync_failed_by_a_stopped_process_keeps_the_store(cluster):
    """A sync that failed because the process was stopped says nothing of the store."""
    worker = cluster.worker(fallback="open")
    cluster.sync(worker)
    worker.ask()
    cluster.now += 2 * TTL
    worker.fail()
    assert not worker.acquire()


@pytest.mark.parametrize(("fallback", "admitted"), [("share", 8), ("open", 100), ("closed", 0)])
def test_fallback_without_the_store_admits_its_share(cluster, fallback, admitted):
    worker, other = cluster.worker(fallback=fallback), cluster.worker()
    cluster.sync(other)
    cluster.sync(worker)
    quota = worker.quota
    start = cluster.now
    while cluster.now < start + TTL * 0.95:
        assert worker.used < quota or not worker.acquire()
        worker.ask()
        cluster.now += 1
        worker.fail()
    cluster.now += 1
    assert worker.in_fallback
    assert sum(worker.acquire() for _ in range(100)) == admitted


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(limit=st.integers(1, 300), demands=st.lists(st.integers(0, 100), min_size=1, max_size=12))
def test_shares_of_any_spread_stay_within_the_limit(server, limit, demands):
    """All shares together are not above the limit, however the sessions are spread."""
    with server.client() as client:
        cluster = Cluster(client, limit, "share")
        workers = [cluster.worker() for _ in demands]
        for worker, demand in zip(workers, demands, strict=True):
            fill(cluster, worker, demand=demand)
        for _ in range(4):
            cluster.now += TTL / 3
            for worker in workers:
                cluster.sync(worker)
        before = sum(worker.used for worker in workers)
        outage(cluster, workers, TTL)
        for worker in workers:
            while worker.acquire():
                pass
        together = sum(worker.used for worker in workers)
        assert before + FALLBACK_SHARE * (limit - before) - len(workers) <= together <= limit


def test_session_ended_without_the_store_makes_room(cluster):
    """A session that ends while the store is away makes room for another."""
    workers = [cluster.worker(fallback="share") for _ in range(4)]
    fill(cluster, *workers)
    outage(cluster, workers, 2 * TTL)
    for worker in workers:
        assert not worker.acquire()
        worker.release()
        assert worker.acquire()


def test_limit_lowered_without_the_store_is_shared(cluster):
    workers = [cluster.worker(fallback="share") for _ in range(4)]
    fill(cluster, *workers)
    outage(cluster, workers, 2 * TTL)
    for worker in workers:
        worker.limit = 10
        worker.used = 0
        while worker.acquire():
            pass
    assert 10 - len(workers) < sum(worker.used for worker in workers) <= 10


def test_inside_of_the_lease_admission_goes_on_without_the_store(cluster):
    worker = cluster.worker(fallback="closed")
    worker.waiting = 5
    cluster.sync(worker)
    worker.waiting = 0
    assert all(worker.acquire() for _ in range(4))
    worker.ask()
    cluster.now += 1
    worker.fail()
    assert worker.acquire()


def test_store_flushed_gives_nothing_until_all_have_synced(cluster):
    first, second, new = cluster.worker(), cluster.worker(), cluster.worker()
    cluster.sync(second)
    fill(cluster, first)
    cluster.client.flushall()
    second.waiting = 10
    assert cluster.sync(second).learning > 0
    new.waiting = 10
    assert cluster.sync(new).quota == 0
    assert sum(worker.used for worker in (first, second, new)) <= 20
    assert cluster.sync(first).grant == first.used
    for _ in range(4):
        cluster.now += TTL / 3
        for worker in (first, second, new):
            cluster.sync(worker)
    fill(cluster, second, new)
    assert sum(worker.used for worker in (first, second, new)) == 20


def test_store_that_went_back_in_time_gives_nothing_either(cluster):
    first, second = cluster.worker(), cluster.worker()
    cluster.sync(first)
    cluster.sync(second)
    old = {key: cluster.client.dump(key) for key in KEYS}
    fill(cluster, first)
    assert first.used >= 19
    cluster.sync(second)
    cluster.client.flushall()
    for key, dump in old.items():
        cluster.client.restore(key, 0, dump)
    second.waiting = 10
    assert cluster.sync(second).learning > 0
    assert first.used + second.used <= 20


@pytest.mark.parametrize("away", [TTL, 1.9 * TTL, 5 * TTL])
@pytest.mark.parametrize("first_back", [0, 1, 2])
def test_stale_replica_promoted_after_the_leases_gives_nothing(cluster, first_back, away):
    """A replica with an older state that takes over after the leases gives nothing either."""
    workers = [cluster.worker() for _ in range(3)]
    cluster.sync(workers[0])
    old = {key: cluster.client.dump(key) for key in KEYS}
    fill(cluster, *workers)
    assert sum(worker.used for worker in workers) == 20
    outage(cluster, workers, away)
    cluster.client.flushall()
    for key, dump in old.items():
        cluster.client.restore(key, 0, dump)
    first = workers[first_back]
    for turn in range(40):  # the others need some seconds to see that it is back
        for worker in [first] if turn < 8 else workers:
            worker.waiting = 10
            cluster.sync(worker)
            worker.waiting = 0
            while worker.acquire():
                pass
        cluster.now += 1
    assert sum(worker.used for worker in workers) == 20


@pytest.mark.parametrize("key", KEYS)
def test_evicted_key_is_as_a_flushed_store(cluster, key):
    first, second = cluster.worker(), cluster.worker()
    fill(cluster, first)
    cluster.sync(second)
    cluster.client.delete(key)
    second.waiting = 10
    cluster.sync(second)
    cluster.sync(first)
    while second.acquire():
        pass
    assert first.used + second.used <= 20
    assert cluster.meta("alloc") == sum(grant for grant, *_ in cluster.grants().values())


@pytest.mark.parametrize("jump", [TTL * 0.5, TTL * 0.7, TTL * 1.5, 86400, -TTL / 2, -86400])
def test_server_whose_clock_jumps_frees_nobodys_permits(cluster, jump):
    first, second = cluster.worker(), cluster.worker()
    cluster.sync(second)
    fill(cluster, first)
    cluster.now += TTL / 3
    cluster.sync(second)
    cluster.now += TTL / 3
    cluster.jump = jump
    for _ in range(20):
        second.waiting = 10
        cluster.sync(second)
        second.waiting = 0
        while second.acquire():
            pass
        cluster.now += 0.1
    assert first.used + second.used <= 20
    cluster.sync(first)
    cluster.now += TTL / 3
    cluster.sync(second)
    assert set(cluster.grants()) == {first.worker, second.worker}
    for _ in range(80):  # and it frees those of the dead
        cluster.now += 0.5
        cluster.sync(second)
    assert set(cluster.grants()) == {second.worker}


def test_clock_jump_nobody_can_notice_frees_no_permits(cluster):
    first, second = cluster.worker(), cluster.worker()
    cluster.sync(second)
    cluster.sync(second)
    fill(cluster, first)
    cluster.now += TTL / 3
    cluster.deliver(second.ask())  # its answer is lost, and with it the time that has passed since
    second.fail()
    cluster.now += 1
    cluster.jump = TTL * 0.7
    for _ in range(5):
        cluster.sync(second)
        cluster.now += 1
    assert first.time_left > 0
    assert first.worker in cluster.grants()


def test_promised_permit_stays_until_the_promise_is_cancelled(cluster):
    first, second = cluster.worker(), cluster.worker()
    cluster.sync(first)
    assert first.quota == 1
    fill(cluster, second)
    request = first.ask()
    reply = cluster.deliver(request)
    assert reply.quota == 0  # there is nothing to have in advance any more,
    assert first.acquire()  # but what was promised was taken before the answer came
    first.answer(reply)
    fill(cluster, second)
    assert first.used + second.used == 20


def test_promises_of_a_lease_that_has_ended_are_void(cluster):
    worker = cluster.worker()
    worker.waiting = 5
    cluster.sync(worker)
    worker.waiting = 0
    assert worker.acquire()
    cluster.now += TTL
    request = worker.ask()
    assert (request.leased, request.used, request.have) == (0, 1, 1)


def test_lowest_limit_holds_as_long_as_somebody_has_it(cluster):
    high, low = cluster.worker(20), cluster.worker(10)
    cluster.sync(high)
    assert cluster.sync(low).limit == 10
    assert cluster.sync(high).limit == 10
    fill(cluster, high)
    assert high.used + low.used <= 10
    for _ in range(3):
        cluster.now += TTL / 3
        cluster.sync(low)
        assert cluster.sync(high).limit == 10
    low.limit = 15  # who had it may raise it at once
    cluster.sync(low)
    assert cluster.sync(high).limit == 15
    cluster.sync(low, leave=True)
    assert cluster.sync(high).limit == 20


def test_limit_of_a_dead_worker_is_forgotten(cluster):
    high, low = cluster.worker(20), cluster.worker(10)
    cluster.sync(low)
    cluster.sync(high)
    for _ in range(int(TTL)):
        cluster.now += 1.1
        last = cluster.sync(high)
    assert last.limit == 20


def test_excess_over_a_lowered_limit_is_shed_in_equal_parts(cluster):
    cluster.limit = 1000
    workers = [cluster.worker() for _ in range(10)]
    for worker in workers:
        worker.waiting = 100
        cluster.sync(worker)
        worker.waiting = 0
        while worker.used < 100 and worker.acquire():
            pass
        cluster.sync(worker)
    before = [worker.used for worker in workers]
    for worker in workers:
        worker.limit = 500
    for _ in range(60):
        cluster.now += 1
        for worker in workers:
            cluster.sync(worker)
            for _ in range(min(worker.excess, 10)):
                worker.release()
            assert not (worker.excess and worker.acquire())
    assert sum(worker.used for worker in workers) == pytest.approx(500, abs=10)
    share = 500 / sum(before)
    assert all(worker.used == pytest.approx(used * share, abs=3) for worker, used in zip(workers, before, strict=True))


def test_sessions_admitted_without_the_store_are_not_shed(cluster):
    worker, other = cluster.worker(fallback="open"), cluster.worker()
    cluster.sync(other)
    cluster.sync(worker)
    for _ in range(int(TTL) + 2):
        worker.ask()
        cluster.now += 1
        worker.fail()
    assert sum(worker.acquire() for _ in range(50)) == 50
    cluster.sync(worker)
    cluster.sync(other)
    cluster.sync(worker)
    assert worker.excess == 0
    worker.release()
    assert not worker.acquire()  # but nobody comes in their place


def test_long_outage_gives_no_worker_s_permits_away(cluster):
    """After a long outage nobody's permits are given away before they come back."""
    workers = [cluster.worker() for _ in range(4)]
    fill(cluster, *workers)
    for _ in range(2):
        for worker in workers:
            cluster.sync(worker)
    cluster.now += 3 * TTL
    for _ in range(3):
        workers[0].waiting = 10
        cluster.sync(workers[0])
        workers[0].waiting = 0
        while workers[0].acquire():
            pass
        cluster.now += 0.5
    assert sum(worker.used for worker in workers) == 20


@pytest.mark.parametrize("share_of_ttl", [0.65, 0.9])
def test_short_outage_keeps_the_permits_of_silent_workers(cluster, share_of_ttl):
    """Nor after a shorter outage those of workers that had been silent before."""
    silent, greedy = cluster.worker(), cluster.worker()
    fill(cluster, silent, demand=10)
    for _ in range(round(TTL * 0.4)):
        fill(cluster, greedy)
        cluster.now += 1
    outage(cluster, [silent, greedy], TTL * share_of_ttl - 1)
    fill(cluster, greedy)
    cluster.sync(silent)
    assert silent.used + greedy.used == 20


def test_after_an_outage_that_lost_everything_too(cluster):
    workers = [cluster.worker(fallback="share") for _ in range(4)]
    fill(cluster, *workers)
    cluster.now += 3 * TTL
    cluster.client.flushall()
    for worker in workers:
        if worker.used:
            worker.waiting = 10
            cluster.sync(worker)
            while worker.acquire():
                pass
    assert sum(worker.used for worker in workers) <= 20


@pytest.mark.parametrize("is_away_again", [False, True])
def test_worker_alone_after_an_outage_knows_how_many_there_are(cluster, is_away_again):
    workers = [cluster.worker(fallback="share") for _ in range(4)]
    fill(cluster, *workers, demand=10)
    for worker in workers:
        cluster.sync(worker)
    if not is_away_again:
        outage(cluster, workers, 2 * TTL)
    cluster.client.flushall()
    for worker in workers:  # the first one is the only one that this store knows
        assert cluster.sync(worker).learning > 0
    if is_away_again:
        outage(cluster, workers, 2 * TTL)
    for worker in workers:
        assert worker.in_fallback
        while worker.acquire():
            pass
    assert 15 <= sum(worker.used for worker in workers) <= 20


def test_ten_thousand_workers_fit(cluster):
    cluster.limit = 1_000_000
    workers = [cluster.worker() for _ in range(500)]
    for worker in workers:
        cluster.sync(worker)
    assert cluster.sync(workers[0]).workers == 500


class Faults(RuleBasedStateMachine):
    """Everything that may go wrong, in any order.

    What is left out is what the guarantee leaves out: leases that have ended, and a worker that starts on a store
    which has lost what it knew before one of the others has spoken to it.
    """

    client = None

    @initialize(limit=st.integers(1, 40), count=st.integers(3, 12) | st.integers(3, 50))
    def begin(self, limit, count):
        self.cluster = Cluster(self.client, limit)
        self.workers = [self.cluster.worker() for _ in range(count)]
        self.lapsed = set()
        """Those whose sessions have outlived a lease: others may have taken their places."""
        self.in_flight = []
        self.answers = []
        self.lost = False
        self.snapshot = None

    def pick(self, index):
        return self.workers[index % len(self.workers)]

    def ask(self, worker, **options):
        if worker.used and not worker.time_left:
            self.lapsed.add(worker)
        return worker.ask(**options)

    def deliver(self, worker, request):
        if self.lost:
            holders = [one for one in self.workers if one.time_left > 0]
            if not (worker in holders and request.acked) and holders:
                return None
            self.lost = False
        return self.cluster.deliver(request)

    @rule(index=st.integers(0, 10**6), demand=st.integers(0, 8), take=st.integers(0, 10))
    def sync(self, index, demand, take):
        worker = self.pick(index)
        worker.waiting = demand
        reply = self.deliver(worker, self.ask(worker))
        worker.waiting = 0
        if reply is None:
            worker.fail()
        else:
            worker.answer(reply)
        self.come(worker, take)

    @rule(silent=st.sets(st.integers(0, 49)), greedy=st.sets(st.integers(0, 49)), seconds=st.floats(0.01, 10))
    def everybody_syncs(self, silent, greedy, seconds):
        for _ in range(2):
            for number, _worker in enumerate(self.workers):
                if number not in silent:
                    self.sync(number, 40 if number in greedy else 0, 40 if number in greedy else 0)
            self.cluster.now += seconds

    @rule(silent=st.integers(0, 49), greedy=st.integers(0, 49))
    def one_is_cut_off_while_another_is_greedy(self, silent, greedy):
        for _ in range(9):
            self.everybody_syncs({silent}, {greedy}, 1.0)

    def come(self, worker, count):
        for _ in range(count):
            if not worker.acquire():
                break

    @rule(
        index=st.integers(0, 10**6),
        demand=st.integers(0, 8),
        fate=st.sampled_from(["request", "reply", "late", "doubled"]),
    )
    def sync_that_fails(self, index, demand, fate):
        worker = self.pick(index)
        worker.waiting = demand
        request = self.ask(worker)
        worker.waiting = 0
        if fate == "reply":
            reply = self.deliver(worker, request)
            if reply is not None:
                self.answers.append((worker, reply))
        elif fate == "late":
            self.in_flight.append((worker, request))
        elif fate == "doubled":
            self.deliver(worker, request)
            self.deliver(worker, request)
        self.cluster.now += 1
        worker.fail()

    @precondition(lambda self: self.in_flight)
    @rule(index=st.integers(0, 10**6))
    def late_request(self, index):
        worker, request = self.in_flight.pop(index % len(self.in_flight))
        self.deliver(worker, request)

    @precondition(lambda self: self.answers)
    @rule(index=st.integers(0, 10**6))
    def late_answer(self, index):
        worker, reply = self.answers.pop(index % len(self.answers))
        worker.answer(reply)

    @rule(index=st.integers(0, 10**6), count=st.integers(1, 10))
    def sessions_come(self, index, count):
        self.come(self.pick(index), count)

    @rule(index=st.integers(0, 10**6), count=st.integers(1, 20))
    def sessions_end(self, index, count):
        worker = self.pick(index)
        worker.used = max(worker.used - count, 0)

    @rule(seconds=st.floats(0.01, 12))
    def time_passes(self, seconds):
        self.cluster.now += seconds

    @rule(jump=st.floats(-1e6, 1e6))
    def clock_jumps(self, jump):
        # One at a time: everybody has spoken since the last one.
        if not self.lost and all(worker.time_left > 0 for worker in self.workers):
            for worker in self.workers:
                self.sync(self.workers.index(worker), 0, 0)
                self.sync(self.workers.index(worker), 0, 0)
            self.cluster.jump += jump

    @rule(index=st.integers(0, 10**6))
    def crash(self, index):
        # What was sent before may still arrive.
        if len(self.workers) > 1:
            self.workers.remove(self.pick(index))

    @rule(index=st.integers(0, 10**6))
    def leave(self, index):
        worker = self.pick(index)
        if len(self.workers) > 1:
            worker.used = 0
            self.deliver(worker, self.ask(worker, leave=True))
            self.workers.remove(worker)

    @rule()
    def start(self):
        if len(self.workers) < 50:
            self.workers.append(self.cluster.worker())

    @rule()
    def flush(self):
        self.client.flushall()
        self.snapshot = None
        self.lost = True

    @rule()
    def save(self):
        if not self.lost:
            self.snapshot = [self.client.dump(key) for key in KEYS], self.cluster.now

    @precondition(lambda self: self.snapshot)
    @rule()
    def restore(self):
        # All have spoken since it was taken.
        dumps, taken = self.snapshot
        if self.lost or not all(worker._acked_at > taken for worker in self.workers if worker.time_left > 0):
            return
        self.client.flushall()
        for key, dump in zip(KEYS, dumps, strict=True):
            if dump is not None:
                self.client.restore(key, 0, dump)
        self.lost = True

    @rule(key=st.sampled_from(KEYS))
    def evict(self, key):
        if self.client.delete(key):
            self.lost = True
            self.snapshot = None

    @rule()
    def lose_the_script(self):
        self.client.script_flush()

    @invariant()
    def nobody_is_above_the_limit(self):
        if hasattr(self, "cluster"):
            valid = [worker for worker in self.workers if worker.time_left > 0 and worker not in self.lapsed]
            assert sum(worker.used for worker in valid) <= self.cluster.limit
            assert sum(max(worker.used, worker.quota) for worker in valid) <= self.cluster.limit

    @invariant()
    def what_is_granted_is_the_sum_of_the_grants(self):
        if hasattr(self, "cluster") and not self.lost:
            grants = self.cluster.grants().values()
            assert self.cluster.meta("alloc") == sum(grant for grant, *_ in grants)
            assert self.cluster.meta("used") == sum(used for _, used, *_ in grants)


def test_whatever_is_lost_doubled_late_or_dead_the_limit_holds(each_server):
    with each_server.client() as client:
        Faults.client = client
        run_state_machine_as_test(
            Faults,
            settings=settings(
                max_examples=int(os.environ.get("EXAMPLES", "30")),
                stateful_step_count=60,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            ),
        )
