import time

import pytest

from asgi_closecodes import error_identity
from asgi_closecodes.error_identity import as_error_id, new_error_id, time_of

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def milliseconds(error_id):
    """The time in an id, as its docstring says: the upper 42 of its 60 bits."""
    number = 0
    for character in error_id:
        number = number << 5 | CROCKFORD.index(character)
    return number >> 18


def test_ids_are_unique_and_increase():
    ids = [new_error_id() for _ in range(10_000)]
    assert len(set(ids)) == 10_000
    assert ids == sorted(ids)


def test_id_is_twelve_characters_that_nobody_misreads():
    for error_id in (new_error_id() for _ in range(1000)):
        assert len(error_id) == 12
        assert set(error_id) <= set(CROCKFORD)


def test_ids_sort_by_time_across_processes():
    before = time.time()
    error_id = new_error_id()
    after = time.time()
    assert before - 0.1 <= milliseconds(error_id) / 1000 <= after + 0.1


def test_ids_increase_when_the_clock_is_set_back(monkeypatch):
    first = new_error_id()
    monkeypatch.setattr(error_identity.time, "time", lambda: 1_000_000.0)
    ids = [new_error_id() for _ in range(100)]
    assert [first, *ids] == sorted({first, *ids})


def test_ids_of_processes_in_one_millisecond_differ(monkeypatch):
    monkeypatch.setattr(error_identity.time, "time", lambda: 1_800_000_000.0)
    ids = set()
    for _ in range(200):
        monkeypatch.setattr(error_identity, "_last_number", 0)  # as in a process that has just started
        ids.add(new_error_id())
    assert len(ids) > 190  # of 262 144


@pytest.mark.parametrize(
    "typed",
    [
        "D216BE3DZX4Y",
        " d2l6be3dzx4y ",
        "D216-BE3D-ZX4Y",
        "internal error; ref=D216BE3DZX4Y",
        'REF=d2i6be3dzx4y"',
        "KeyError: a; ref=ABCDEFGHJKMN; ref=D216BE3DZX4Y",
    ],
)
def test_id_is_known_however_it_is_typed(typed):
    assert as_error_id(typed) == "D216BE3DZX4Y"


def test_id_says_when_it_was_made():
    before = time.time()
    assert before - 0.001 <= time_of(new_error_id()) <= time.time()
    for other in ("", "D216BE3DZX4", "D216BE3DZX4U", "d216be3dzx4y"):
        assert time_of(other) is None
