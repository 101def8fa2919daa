"""Every record is as schema.json says, and schema.json says no more than that."""

import json
from importlib.resources import files

import jsonschema
import pytest

from asgi_closecodes.logs import JsonFormatter, LogObserver
from tests.support import generated
from tests.support.every_event import LOGGED

SCHEMA = json.loads(files("asgi_closecodes.logs").joinpath("schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())


def checked(record):
    """What ``record`` is as JSON, valid by the schema."""
    written = json.loads(JsonFormatter().format(record))
    VALIDATOR.validate(written)
    unknown = {key for key in written if key not in SCHEMA["properties"] and "closecodes.limit." not in key}
    assert not unknown
    return written


def test_schema_matches_the_events():
    assert generated.SCHEMA.read_text() == generated.as_json(generated.schema(SCHEMA)), (
        "python -m tests.support.generated"
    )


@pytest.mark.parametrize("name", generated.TABLES)
def test_table_in_its_readme_matches_the_code(name):
    assert generated.TABLES[name][0].read_text() == generated.page(name), "python -m tests.support.generated"


def test_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", LOGGED)
def test_every_record_is_as_the_schema_says(records, name):
    LogObserver()(LOGGED[name])
    assert checked(records[0])["event.name"] == name


@pytest.mark.parametrize(
    "name", ["closecodes.session.exception", "closecodes.session.refused", "closecodes.gate.saturated"]
)
def test_summaries_too(records, name):
    observer = LogObserver()
    for _ in range(30):
        observer(LOGGED[name])
    observer.flush_summaries(now=True)
    *lines, summary = map(checked, records)
    assert summary["closecodes.suppressed.event"] == name
    [count] = [value for key, value in summary.items() if key.endswith(".suppressed")]
    assert len(lines) + count == 30
    assert summary.get("websocket.close.code") == lines[0].get("websocket.close.code")


def test_every_name_and_key_of_the_schema_is_written(records):
    seen, keys = set(), set()
    observer = LogObserver()
    for event in LOGGED.values():
        for _ in range(30):
            observer(event)
    observer.flush_summaries(now=True)
    for record in records:
        written = checked(record)
        seen.add(written["event.name"])
        keys.update(written)
    assert seen == {branch["const"] for branch in SCHEMA["properties"]["event.name"]["oneOf"]}
    assert set(SCHEMA["properties"]) - keys == {"trace_id", "span_id", "correlation_id", "exception.notes"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"closecodes.error.id": "abc"},
        {"timestamp": "yesterday"},
        {"event.name": "closecodes.nonsense"},
        {"closecodes.error.phase": "later"},
        {"websocket.close.code": "1011"},
        {"closecodes.error.fingerprint": None},
    ],
)
def test_wrong_record_is_not_valid(records, wrong):
    LogObserver()(LOGGED["closecodes.session.exception"])
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate({**checked(records[0]), **wrong})


def test_record_without_what_it_needs_is_not_valid(records):
    LogObserver()(LOGGED["closecodes.session.exception"])
    written = checked(records[0])
    del written["closecodes.error.id"]
    with pytest.raises(jsonschema.ValidationError, match=r"closecodes\.error\.id"):
        VALIDATOR.validate(written)
