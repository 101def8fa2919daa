"""The bookkeeping of a worker's sessions by key, with the shipped script and nothing else: no task, no event loop."""

from __future__ import annotations

import os
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from asgi_closecodes.gates.cluster import counts
from asgi_closecodes.gates.cluster.counts import Counts
from asgi_closecodes.gates.cluster.redis.client import COUNT
from asgi_closecodes.gates.cluster.store import CountReply
from asgi_closecodes.gates.per_key import SessionsByKey
from tests.support.fakes import FakeSession

TTL = 30.0
KEYS = ("ann", "bob", "eve", "kim")
PREFIX = "closecodes:{test}:keys"


class Asking:
    """A session that asks for a place: ``answer`` is whether it got one, None as long as it waits."""

    def __init__(self, session=None):
        self.session = session or FakeSession()
        self.answer = None
        self.is_cancelled = False

    @property
    def is_open(self):
        return self.answer is None and not self.is_cancelled


class Worker:
    """A worker that does at once what its counts decide."""

    def __init__(self, client, clock):
        self.client = client
        self.script = client.register_script(COUNT)
        self.sessions = SessionsByKey()
        self.counts = Counts(self.sessions, clock=clock)
        self.replaced = []
        self.is_reachable = True

    def come(self, key, session=None):
        asking = Asking(session)
        self.counts.ask_for(key, asking)
        return asking

    def leave(self, key, session):
        if self.sessions.drop(key, session):
            self.counts.mark_changed(key)

    def deliver(self, request):
        keys = [PREFIX, f"{PREFIX}:said", *(f"{PREFIX}:{one.digest}" for one in request.counts)]
        known, replaced, *pairs = self.script(keys=keys, args=request.arguments())
        return CountReply(
            bool(known), [name.decode() for name in replaced], [*zip(pairs[::2], pairs[1::2], strict=True)]
        )

    def ask(self, limit, *, replaces=False):
        return self.counts.ask(lease_duration=TTL, limit=limit, replaces=replaces)

    def answer(self, sync, reply):
        decisions = self.counts.answer(sync, reply)
        for asking in decisions.refused + decisions.superseded:
            asking.answer = False
        for key, asking, number in decisions.admitted:
            assert asking.is_open
            asking.answer = True
            self.sessions.put(key, asking.session, number)
        for key, session in decisions.replaced:
            self.replaced.append(session)
            self.leave(key, session)
        return decisions

    def fail(self, sync):
        for _, asking in self.counts.abandon(sync):
            asking.answer = False

    def sync(self, limit, **options):
        sync = self.ask(limit, **options)
        return self.answer(sync, self.deliver(sync.request))

    def wait(self):
        return self.counts.wait(TTL, is_reachable=True)


def recorded(client, key):
    return sum(int(value.split(b":")[0]) for value in client.hvals(f"{PREFIX}:{key}"))


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def worker(client, now):
    return Worker(client, lambda: now[0])


def test_counts_all_reported_are_quiet_for_a_third_of_ttl(worker, now):
    worker.come("ann")
    assert worker.wait() == 0
    worker.sync(3)
    assert worker.wait() == TTL / 3
    now[0] += TTL / 3
    assert worker.wait() == 0
    assert worker.ask(3).request.counts == []


def test_counts_more_keys_than_one_call_reports_each_once(worker, monkeypatch):
    """A key that was reported does not keep another one from it."""
    monkeypatch.setattr(counts, "MAX_KEYS_PER_SYNC", 3)
    all_asking = [worker.come(f"key{number}") for number in range(8)]
    reported = []
    while worker.wait() == 0:
        sync = worker.ask(1)
        reported += [one.digest for one in sync.request.counts]
        worker.answer(sync, worker.deliver(sync.request))
    assert sorted(reported) == [f"key{number}" for number in range(8)]
    assert all(asking.answer for asking in all_asking)


def test_counts_cancelled_while_asked_gives_the_permit_back(worker, client):
    asking = worker.come("ann")
    sync = worker.ask(1)
    reply = worker.deliver(sync.request)
    asking.is_cancelled = True
    assert worker.answer(sync, reply).admitted == []
    assert worker.wait() == 0
    worker.sync(1)
    assert recorded(client, "ann") == 0
    assert worker.wait() > 0


def test_counts_cancelled_before_it_is_asked_asks_for_none(worker):
    """In its name nobody is to be replaced."""
    worker.come("ann").is_cancelled = True
    assert [one.more for one in worker.ask(1).request.counts] == [0]


def test_counts_sync_lost_with_its_loop_is_asked_again(worker):
    asking = worker.come("ann")
    lost = worker.ask(1)
    again = worker.ask(1)
    assert again.request.counts == lost.request.counts
    reply = worker.deliver(again.request)
    worker.answer(again, reply)
    assert asking.answer
    assert worker.answer(lost, reply).admitted == []  # it comes late


def test_counts_sync_that_failed_is_reported_again(worker):
    worker.come("ann")
    sync = worker.ask(1)
    assert [key for key, _ in worker.counts.abandon(sync)] == ["ann"]
    assert worker.wait() == 0
    assert [one.digest for one in worker.ask(1).request.counts] == ["ann"]


def test_counts_unreachable_store_is_asked_after_a_pause(worker, now):
    worker.come("ann")
    worker.fail(worker.ask(1))
    assert worker.counts.wait(TTL, is_reachable=False) == counts.RETRY_INTERVAL_S
    now[0] += counts.RETRY_INTERVAL_S
    assert worker.counts.wait(TTL, is_reachable=False) == 0


def test_counts_that_leave_are_another_worker_and_say_all(worker, client):
    worker.come("ann")
    worker.sync(1)
    before = worker.counts.worker
    request = worker.counts.leave()
    assert (request.worker, request.lease_duration) == (before, 0)
    worker.deliver(request)
    assert worker.counts.worker != before
    assert [one.digest for one in worker.ask(1).request.counts] == ["ann"]


def test_counts_of_a_store_that_forgot_are_all_reported(worker, client):
    for key in KEYS:
        worker.come(key)
    worker.sync(1)
    client.flushall()
    worker.come("zoe")
    worker.sync(1)
    worker.sync(1)
    assert [recorded(client, key) for key in (*KEYS, "zoe")] == [1] * 5


def test_counts_after_eight_hours_are_all_reported(worker, now):
    worker.come("ann")
    worker.sync(1)
    now[0] += counts.FULL_SYNC_INTERVAL_S + 1
    assert [one.digest for one in worker.ask(1).request.counts] == ["ann"]


def test_counts_replaced_is_acknowledged_until_it_is_known(worker, client, now):
    other = Worker(client, lambda: now[0])
    old = worker.come("ann").session
    worker.sync(1, replaces=True)
    other.come("ann")
    other.sync(1, replaces=True)
    worker.counts.notify()
    assert worker.wait() == 0
    worker.sync(1, replaces=True)
    assert worker.replaced == [old]
    lost = worker.ask(1, replaces=True)
    assert len(lost.request.acknowledged) == 1
    worker.fail(lost)
    worker.sync(1, replaces=True)
    assert worker.replaced == [old]
    assert worker.wait() > 0


class Faults(RuleBasedStateMachine):
    """Sessions that come, leave and are cancelled at several workers, while calls are lost, late or forgotten."""

    client = None
    replaces = False

    @initialize(limit=st.integers(0, 4), workers=st.integers(1, 3))
    def begin(self, limit, workers):
        self.client.flushall()
        self.limit = limit
        self.now = 1000.0
        self.workers = [Worker(self.client, lambda: self.now) for _ in range(workers)]
        self.asking = []
        self.is_exact = True
        """Whether nothing was lost of what somebody held, or only asked for."""

    def pick(self, number):
        return self.workers[number % len(self.workers)]

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS), amount=st.integers(1, 6))
    def come(self, number, key, amount):
        for _ in range(amount):
            self.asking.append((self.pick(number), key, self.pick(number).come(key)))

    @rule(number=st.integers(0, 100))
    def cancel(self, number):
        if waiting := [asking for _, _, asking in self.asking if asking.is_open]:
            waiting[number % len(waiting)].is_cancelled = True

    @rule(number=st.integers(0, 100))
    def leave(self, number):
        if held := [(worker, key, asking) for worker, key, asking in self.asking if asking.answer]:
            worker, key, asking = held[number % len(held)]
            worker.leave(key, asking.session)

    @rule(number=st.integers(0, 2), cancelled=st.booleans(), left=st.booleans())
    def sync(self, number, cancelled, left):
        worker = self.pick(number)
        sync = worker.ask(self.limit, replaces=self.replaces)
        reply = worker.deliver(sync.request)
        if cancelled:
            self.cancel(0)
        if left:
            self.leave(0)
        worker.answer(sync, reply)

    @rule(number=st.integers(0, 2), loss=st.sampled_from(["request", "reply", "loop"]))
    def lose(self, number, loss):
        worker = self.pick(number)
        sync = worker.ask(self.limit, replaces=self.replaces)
        if loss == "reply":
            worker.deliver(sync.request)
        if loss != "loop":
            worker.fail(sync)

    @rule(number=st.integers(0, 2))
    def answer_of_two_comes_in_the_wrong_order(self, number):
        worker = self.pick(number)
        first = worker.ask(self.limit, replaces=self.replaces)
        reply = worker.deliver(first.request)
        second = worker.ask(self.limit, replaces=self.replaces)
        worker.answer(second, worker.deliver(second.request))
        worker.answer(first, reply)
        self.is_exact = False  # both may have been admitted

    @rule()
    def flush(self):
        self.client.flushall()
        self.is_exact = False

    @rule(number=st.integers(0, 2))
    def leave_and_come_back(self, number):
        worker = self.pick(number)
        for _, asking in worker.counts.take_waiting():
            asking.answer = False
        worker.deliver(worker.counts.leave())
        self.is_exact = False

    @invariant()
    def nobody_has_a_place_too_many(self):
        for key in KEYS if self.is_exact else ():
            assert sum(len(worker.sessions.of(key)) for worker in self.workers) <= self.limit * (
                len(self.workers) if self.replaces else 1
            )

    def teardown(self):
        for _ in range(3):  # who is replaced by another one's sync, has to be told
            for worker in self.workers:
                worker.counts.notify()
                for number in count():
                    if worker.wait() > 0:
                        break
                    worker.sync(self.limit, replaces=self.replaces)
                    assert number < 10, "there is always something to report"
        for key in KEYS:
            assert recorded(self.client, key) == sum(len(worker.sessions.of(key)) for worker in self.workers)
        for worker, key, asking in self.asking:
            assert asking.answer is not None or asking.is_cancelled
            assert asking.answer or asking.session not in worker.sessions.of(key)
        shed = [session for worker in self.workers for session in worker.replaced]
        assert len(shed) == len({*shed})


@pytest.mark.parametrize("replaces", [False, True])
def test_counts_whatever_is_lost_the_store_knows_in_the_end(client, replaces):
    Faults.client, Faults.replaces = client, replaces
    run_state_machine_as_test(
        Faults,
        settings=settings(
            max_examples=int(os.environ.get("EXAMPLES", "60")),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
