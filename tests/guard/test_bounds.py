"""Tables whose keys come from outside are bounded, and still add up."""

import pytest

from asgi_closecodes import Close, Guard, events
from asgi_closecodes.bounds import MAX_LABELS, OTHER
from tests.support.every_event import FACTS

MANY = 5000


def refused(cause):
    return events.SessionRefused(FACTS, Close(1013), "OfficeHours", cause, 1.0, "close")


def shed(cause):
    return events.SessionShed(FACTS, Close(1013), cause, 1.0)


@pytest.mark.parametrize(("make", "table"), [(refused, "refusals"), (shed, "sheds")])
def test_causes_from_outside_are_bounded_and_add_up(make, table):
    guard = Guard()
    for number in range(MANY):
        guard.report(make(f"room-{number}"))
    counts = guard.snapshot()[table]
    assert len(counts) == MAX_LABELS + 1
    assert counts[OTHER] == MANY - MAX_LABELS
    assert sum(counts.values()) == MANY


def test_close_codes_of_clients_are_bounded_and_add_up():
    guard = Guard()
    for number in range(1000):
        guard._tally.closed(Close(3000 + number))
    counts = guard.snapshot()["closes"]
    assert len(counts) == MAX_LABELS + 1
    assert sum(counts.values()) == 1000


def test_saturated_gates_are_bounded(caplog):
    """Each cause of a user's gate may begin a spell; the log has a line each of the first, the tick a few spells to look at."""
    caplog.set_level("INFO", "asgi_closecodes")
    guard = Guard()
    for number in range(MANY):
        guard.report(refused(f"room-{number}"))
    assert len(guard._saturation._spells) == MAX_LABELS + 1
    names = [getattr(record, "event.name", "") for record in caplog.records]
    assert names.count("closecodes.gate.saturated") <= MAX_LABELS + 1
