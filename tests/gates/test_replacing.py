"""A key whose oldest sessions are replaced holds no more than twice its limit, however slowly they leave."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes import TryAgainLater
from asgi_closecodes.gates import MaxSessionsPerKey
from tests.support.fakes import FakeSession


def enter(gate, name="ann"):
    visitor = FakeSession((name, 1))
    gate.acquire(name, visitor)
    return visitor


def test_replaced_sessions_count_up_to_twice_the_limit():
    gate = MaxSessionsPerKey(2, when_full="replace_oldest")
    visitors = [enter(gate) for _ in range(4)]
    assert [bool(one.ended) for one in visitors] == [True, True, False, False]
    with pytest.raises(TryAgainLater) as refusal:
        enter(gate)
    assert (refusal.value.usage, refusal.value.limit) == (2, 2)
    enter(gate, "bob")  # each key for itself
    gate.release("ann", visitors[0])
    enter(gate)
    with pytest.raises(TryAgainLater):
        enter(gate)
    for one in visitors:
        gate.release("ann", one)


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60), limit=st.integers(0, 4))
def test_key_never_holds_more_than_twice_its_limit(steps, limit):
    gate, inside = MaxSessionsPerKey(limit, when_full="replace_oldest"), []
    for comes, number in steps:
        if comes:
            with contextlib.suppress(TryAgainLater):
                inside.append(enter(gate))
        elif inside:
            gate.release("ann", inside.pop(number % len(inside)))
        assert len(inside) <= 2 * limit
        assert gate.active == sum(not one.ended for one in inside) <= limit
    for one in inside:
        gate.release("ann", one)
    assert gate.active == len(gate._sessions) == len(gate._leaving) == 0
