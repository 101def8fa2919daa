"""Tables whose keys come from outside are bounded, and still add up."""

import json
import logging

import pytest

from asgi_closecodes import Close, CloseCode, Guard, events
from asgi_closecodes.bounds import MAX_LABELS, OTHER
from asgi_closecodes.guard.counters import Counters
from asgi_closecodes.logs import LogObserver
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
        guard._counters.closed(Close(3000 + number))
    counts = guard.snapshot()["closes"]
    registered = [code for code in CloseCode if 3000 <= code < 4000]
    assert len(counts) == MAX_LABELS + len(registered) + 1
    assert sum(counts.values()) == 1000


def test_registered_close_codes_keep_their_row():
    """A client sends whatever it likes, so that it could fill the table."""
    tally = Counters()
    codes = [*range(3000, 5000), 10**5000, -1, 70_000, True, "1000", None, 1000, 1006, 1013, 1013]
    for code in codes:
        tally.closed(Close(code))
    assert (tally.closes[1000], tally.closes[1006], tally.closes[1013], tally.closes[3000]) == (1, 1, 2, 1)
    assert len(tally.closes) <= MAX_LABELS + len(CloseCode) + 1
    assert sum(tally.closes.values()) == len(codes)
    json.dumps(tally.closes)


def written_and_counted(records, name, kind):
    lines = [vars(record) for record in records]
    counted = [line for line in lines if line.get("closecodes.suppressed.event", line["event.name"]) == name]
    written = sum(line["event.name"] == name for line in counted)
    return written, written + sum(line[f"closecodes.{kind}.suppressed"] for line in counted)


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [
        (lambda cause: events.GateSaturated("Mine", cause, 1, 1), "gate.saturated", "saturation"),
        (lambda cause: events.GateRecovered("Mine", cause, 1, 0.0), "gate.recovered", "saturation"),
        (refused, "session.refused", "refusal"),
        (shed, "session.shed", "refusal"),
    ],
)
@pytest.mark.parametrize("causes", [MANY, 3])
def test_lines_about_causes_from_outside_are_sampled(make, name, kind, causes, caplog):
    """Lines and numbers add up to what happened."""
    caplog.set_level(logging.INFO, "asgi_closecodes")
    observer = LogObserver()
    for number in range(MANY):
        observer(make(f"cause-{number % causes}"))
    observer.flush_summaries(now=True)
    written, happened = written_and_counted(caplog.records, f"closecodes.{name}", kind)
    assert written < 100
    assert happened == MANY


def test_saturated_gates_are_bounded(caplog):
    """Each cause of a user's gate may begin an episode; the log has a line each of the first, the tick a few to check."""
    caplog.set_level("INFO", "asgi_closecodes")
    guard = Guard()
    for number in range(MANY):
        guard.report(refused(f"room-{number}"))
    assert len(guard._saturation._episodes) == MAX_LABELS + 1
    names = [getattr(record, "event.name", "") for record in caplog.records]
    assert names.count("closecodes.gate.saturated") <= MAX_LABELS + 1
