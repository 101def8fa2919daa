"""LogSampler of errors: bounded lines, exact sums, and all of it decided before anything is formatted."""

import gc
import json
import logging
import subprocess
import sys
from dataclasses import asdict

import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, events
from asgi_closecodes.gates import MaxSessions
from asgi_closecodes.logs import JsonFormatter, LogObserver
from tests.support.asgi import Handler, Peer
from tests.support.every_event import LOGGED

NAME = "closecodes.session.exception"


def told(records, kind="error"):
    """How many errors (or refusals) the records speak of."""
    lines = [vars(record) for record in records]
    return sum(
        (0 if line["event.name"] == f"closecodes.{kind}s.suppressed" else 1) + line[f"closecodes.{kind}.suppressed"]
        for line in lines
        if f"closecodes.{kind}.suppressed" in line
    )


def errors(count, distinct=1):
    template = LOGGED[NAME]
    for number in range(count):
        yield events.SessionFailed(
            template.session,
            "ABCDEFGHJKMN",
            f"{number % distinct:012x}",
            template.exception,
            template.close,
            True,
        )


@pytest.mark.parametrize(("count", "distinct", "most_lines"), [(10_000, 1, 70), (2_000, 2_000, 1200), (9_000, 3, 120)])
def test_storm_of_errors(records, count, distinct, most_lines):
    counted = []
    observer = LogObserver(report=counted.append)
    for event in errors(count, distinct):
        observer(event)
    observer.flush_summaries(now=True)
    assert told(records) == count
    assert len(records) <= most_lines
    assert counted == [events.LogsSuppressed(NAME, 1)] * len(counted)
    lines = [record for record in records if vars(record)["event.name"] == NAME]
    assert len(counted) + len(lines) == count
    summaries = [record for record in records if record not in lines]
    assert {vars(record)["closecodes.suppressed.event"] for record in summaries} == {NAME}
    assert {record.levelname for record in records} == {"ERROR"}


def test_event_left_out_is_not_read(records, monkeypatch):
    observer = LogObserver()
    for event in errors(10):
        observer(event)
    monkeypatch.setattr(observer._redactor, "keys", lambda session: 1 / 0)
    for event in errors(50):
        observer(event)
    assert len(records) == 10


@pytest.mark.parametrize("options", [{"log_burst": None}, {"log_per_minute": None}])
def test_every_error_may_be_logged(records, options):
    guard = Guard(Settings(**options))
    for event in errors(500):
        guard.report(event)
    assert len([record for record in records if record.levelname == "ERROR"]) == 500


def test_limits_of_the_log_may_be_changed_while_it_runs(records):
    guard = Guard(Settings(log_burst=1, log_per_minute=0))
    for burst in (1, 3, 2):
        guard.update(log_burst=burst)
        for event in errors(5):
            guard.report(event)
    lines = [record for record in records if vars(record)["event.name"] == NAME]
    assert [vars(record)["closecodes.error.suppressed"] for record in lines] == [0, 4, 0, 0, 2, 0]


@pytest.mark.anyio
async def test_refusals_after_five_of_a_gate_and_cause_are_counted(records):
    guard = Guard(Settings(reject_with="close"), gate=MaxSessions(0))
    app = CloseCodeMiddleware(Handler(), guard)
    for _ in range(40):
        await Peer().visit(app)
    lines = [record for record in records if vars(record)["event.name"] == "closecodes.session.refused"]
    assert len(lines) == 5
    guard._logs.flush_summaries(now=True)
    assert told(records, "refusal") == 40
    summary = vars(records[-1])
    assert (summary["closecodes.gate.name"], summary["closecodes.gate.cause"]) == ("max_sessions", "full")
    assert records[-1].getMessage() == (
        "suppressed 35 more like this: refused a session of /: max_sessions (full); retry after 1.9 s"
    ).replace("1.9", records[-1].getMessage().split()[-2])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("settings", "error", "written"),
    [({"max_sessions": 0, "reject_with": "close"}, None, 5), ({"log_burst": 3}, ValueError(), 3)],
)
async def test_event_only_counted_is_not_read(settings, error, written, records, monkeypatch):
    """Neither ids nor addresses nor events are made of records that nobody writes, where nobody follows."""
    logging.getLogger("asgi_closecodes").setLevel(logging.INFO)
    made = []
    monkeypatch.setattr("asgi_closecodes.session.facts.client_of", made.append)
    monkeypatch.setattr(events, "LogsSuppressed", lambda *_: 1 / 0)
    app = CloseCodeMiddleware(Handler(error), Guard(Settings(**settings)))
    for _ in range(20):
        await Peer().visit(app)
    assert len(made) == 1 + written  # the first is described for the summary too
    assert "closecodes.callback.failed" not in {vars(record)["event.name"] for record in records}


@pytest.mark.anyio
async def test_facts_are_the_same_for_observers_and_for_logs(records, monkeypatch):
    told = []
    observed = CloseCodeMiddleware(Handler(ValueError()), Guard(observers=[told.append]))
    counted = CloseCodeMiddleware(Handler(ValueError()), guard := Guard())
    monkeypatch.setattr(guard, "report", told.append)
    monkeypatch.setattr("time.monotonic", lambda: 7.0)
    monkeypatch.setattr("os.urandom", lambda size: b"u" * size)
    for app in (observed, counted):
        await Peer("hello", path="/rooms/1", scheme="wss").visit(app)
    facts, late = (event.session for event in told if isinstance(event, events.SessionFailed))
    assert {name: getattr(late, name) for name in facts.__slots__} == asdict(facts)
    assert repr(late).partition("(")[2] == repr(facts).partition("(")[2]


@pytest.mark.anyio
async def test_first_suppressed_record_starts_the_ticker(records):
    guard = Guard(Settings(log_burst=1))
    app = CloseCodeMiddleware(Handler(ValueError()), guard)
    await Peer().visit(app)
    assert not guard._ticker.is_running
    await Peer().visit(app)
    assert guard._ticker.is_running


PROGRAM = """
import anyio
from asgi_closecodes import CloseCodeMiddleware, Guard
from asgi_closecodes.logs import configure_logging
from tests.support.asgi import Handler, Peer
configure_logging("json", level="ERROR")
app = CloseCodeMiddleware(Handler(ValueError("the text")), {guard})
async def storm():
    for _ in range(100):
        await Peer().visit(app)
{run}
"""


@pytest.mark.parametrize(
    ("backend", "ending"),  # of a process whose event loop has ended already
    [("asyncio", ""), ("trio", ""), ("asyncio", "raise SystemExit(3)"), ("trio", "del app")],
)
def test_pending_summaries_are_logged_as_the_process_ends(backend, ending):
    program = PROGRAM.format(guard="Guard()", run=f"anyio.run(storm, backend={backend!r})\n{ending}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(lines) == 11
    assert sum(line["event.name"] == NAME for line in lines) + lines[-1]["closecodes.error.suppressed"] == 100
    assert lines[-1]["event.name"] == "closecodes.errors.suppressed"


def test_guard_that_is_gone_leaves_nothing_behind(records):
    gc.collect()  # and with it the guards of other tests, which say their last word too
    records.clear()
    guard = Guard(Settings(log_burst=1))
    for event in errors(5):
        guard.report(event)
    del guard
    gc.collect()
    assert told([record for record in records if record.levelno == logging.ERROR]) == 5
    assert json.loads(JsonFormatter().format(records[-1]))["closecodes.error.suppressed"] == 4
