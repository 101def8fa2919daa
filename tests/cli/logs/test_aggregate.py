"""What is written and what is counted instead add up to what happened."""

import json

from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes import Close, events
from asgi_closecodes.cli.logs.aggregate import MAX_COLUMNS, MAX_KINDS, Closes, Errors, Timeline, total
from asgi_closecodes.cli.logs.record import Record
from tests.support.every_event import CLOSE, FACTS, LOGGED
from tests.support.log_lines import failure, logged


def tallied(kind, lines):
    """Read the lines that have one of its needles."""
    aggregate = kind()
    for line in lines:
        if any(needle in line for needle in kind.NEEDLES):
            aggregate.add(Record.parse(line))
    return aggregate


def refusal(cause="full", mode="close", code=1013):
    return events.SessionRefused(FACTS, Close(code, "try again later"), "max_sessions", cause, 2.3, mode, 5, 5)


def test_equal_errors_are_one_kind_with_all_that_were_counted():
    lines = logged(*[failure()] * 10_000)
    assert len(lines) < 100
    errors = tallied(Errors, lines)
    [kind] = errors.kinds.values()
    assert kind.count == 10_000
    assert kind.written == len(lines) - 1
    assert (kind.fingerprint, kind.error_type, kind.ref) == ("0123456789ab", "ValueError", "ABCDEFGHJKMN")
    assert kind.routes.keys() == {"/rooms/{id}"}
    assert sum(errors.timeline.counts(kind.over_time)) == 10_000


def test_distinct_errors_add_up_beyond_what_is_told_apart():
    errors = tallied(Errors, logged(*[failure(f"{number:012x}") for number in range(2000)] * 2))
    assert total(errors.kinds.values()).count == 4000
    assert len([kind for kind in errors.kinds.values() if kind.fingerprint]) >= 1000


happenings = st.lists(
    st.one_of(
        st.builds(failure, st.sampled_from(["a" * 12, "b" * 12])),
        st.builds(refusal, st.sampled_from(["full", "client"]), st.sampled_from(["close", "http", "shadow"])),
        st.builds(
            events.SessionShed, st.just(FACTS), st.just(CLOSE), st.sampled_from(["full", "kicked"]), st.just(2.0)
        ),
        st.sampled_from([event for name, event in LOGGED.items() if name.split(".")[-1] not in ("opened", "closed")]),
    ),
    max_size=100,
)


@given(happenings)
def test_all_adds_up(happened):
    lines = logged(*happened)
    errors, closes = tallied(Errors, lines), tallied(Closes, lines)
    kinds = [type(event) for event in happened]
    failed, shed = kinds.count(events.SessionFailed), kinds.count(events.SessionShed)
    others = sum(kinds.count(kind) for kind in (events.GateFailed, events.CallbackFailed, events.BackgroundFailed))
    assert total(errors.kinds.values()).count == failed + others
    modes = [event.mode for event in happened if isinstance(event, events.SessionRefused)]
    shadowed = modes.count("shadow")
    refused = len(modes) - shadowed
    assert total(closes.codes.values()).count == failed + shed + refused
    assert closes.codes.get(1011, total(())).count == failed
    assert "unknown" not in closes.codes
    for outcome, count in {"refused": refused, "shadow": shadowed, "shed": shed}.items():
        assert sum(aggregate.count for key, aggregate in closes.refusals.items() if key[2] == outcome) == count
    assert sum(closes.unsent.values()) == kinds.count(events.CloseFailed)


def test_close_logged_each_time_counts_once():
    happened = []
    for number in range(100):
        failed = failure(session=f"{number:012x}")
        happened += [failed, events.SessionClosed(failed.session, failed.close, "middleware")]
        happened.append(events.SessionClosed(FACTS, Close(1000), "client"))
    happened.append(events.SessionClosed(FACTS, None, "handler"))
    closes = tallied(Closes, logged(*happened))
    assert {code: aggregate.count for code, aggregate in closes.codes.items()} == {1011: 100, 1000: 100, "http": 1}


def test_process_logging_every_close_counts_only_for_itself():
    """A process that logs every close says nothing about another process."""
    lines = logged(failure(), events.SessionClosed(failure().session, Close(1011), "middleware"))
    others = [line.replace(b'"process.pid": ', b'"process.pid": 1') for line in logged(*[failure()] * 30)]
    assert tallied(Closes, lines + others).codes[1011].count == 31


def test_errors_of_other_loggers_are_grouped_by_common_text():
    trace = 'Traceback (most recent call last):\n  File "/app/a.py", line {}, in f\nKeyError: {}'
    lines = [
        {"level": "error", "logger": "app", "message": "job 5 failed after 3 s"},
        {"level": "error", "logger": "app", "message": "job 66 failed after 12 s"},
        {"level": "error", "logger": "other", "message": "job 5 failed after 3 s"},
        {"level": "info", "logger": "app", "message": 'no "error"'},
        {"message": "x", "exc_info": trace.format(5, 1)},
        {"message": "y", "exc_info": trace.format(7, 2)},
    ]
    errors = tallied(Errors, [json.dumps(line).encode() for line in lines])
    assert sorted(kind.count for kind in errors.kinds.values()) == [1, 2, 2]
    assert errors.timeline.counts({}) == []


def test_kinds_are_bounded_and_the_rest_is_one_more():
    errors, closes = Errors(), Closes()
    for number in range(MAX_KINDS + 100):
        keys = {"level": "error", "closecodes.error.fingerprint": f"{number}", "closecodes.gate.cause": f"{number}"}
        errors.add(Record({**keys, "event.name": "closecodes.session.exception"}))
        closes.add(Record({**keys, "event.name": "closecodes.session.refused", "process.pid": number}))
    assert len(errors.kinds) == MAX_KINDS + 1
    assert len(closes.refusals) == MAX_KINDS + 1
    assert total(errors.kinds.values()).count == total(closes.refusals.values()).count == MAX_KINDS + 100


@given(st.lists(st.tuples(st.floats(0.001, 9e9), st.integers(1, 100)), max_size=50))
def test_columns_become_wider_and_counts_stay(counted):
    timeline = Timeline()
    one, two = timeline.series(), timeline.series()
    for time, count in counted:
        timeline.add(one, time, count)
        timeline.add(two, time, 1)
    columns = timeline.counts(one)
    assert len(columns) == len(timeline.counts(two)) <= MAX_COLUMNS
    assert sum(columns) == sum(count for _, count in counted)
    assert sum(timeline.counts(two)) == len(counted)
    if columns:
        assert columns[0] > 0
        assert columns[-1] > 0
