"""Each record through what people write their logs with: nothing raises, and no field is lost on the way."""

import json
import logging
import logging.handlers
import queue

import ecs_logging
import pytest
import sentry_sdk
import structlog
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from pythonjsonlogger.json import JsonFormatter as PlainJsonFormatter
from sentry_sdk.integrations.logging import EventHandler

from asgi_closecodes.logs import ConsoleFormatter, JsonFormatter, LogObserver
from tests.support.every_event import LOGGED


def raised():
    try:
        raise ValueError("the text")
    except ValueError as error:
        return error


@pytest.fixture(params=LOGGED)
def record(request, records):
    event = LOGGED[request.param]
    if getattr(event, "exception", None) is not None:
        event.exception.__traceback__ = raised().__traceback__
    LogObserver()(event)
    return records[0]


def fields_of(record):
    """The keys of ``record`` and their values, as this package set them."""
    return {key: value for key, value in vars(record).items() if "." in key}


def test_our_formatter(record):
    assert json.loads(JsonFormatter().format(record)).items() >= fields_of(record).items()


def test_python_json_logger(record):
    written = json.loads(PlainJsonFormatter().format(record))
    assert written.items() >= fields_of(record).items()
    assert ("exc_info" in written) == bool(record.exc_info)


def test_structlog(record):
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper("iso"),
            structlog.processors.format_exc_info,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    )
    written = json.loads(formatter.format(record))
    assert written.items() >= {**fields_of(record), "event": record.getMessage()}.items()
    assert ("Traceback" in written.get("exception", "")) == bool(record.exc_info)


def test_ecs_logging(record):
    written = json.loads(ecs_logging.StdlibFormatter().format(record))

    def flat(nested, prefix=""):
        for key, value in nested.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    assert dict(flat(written)).items() >= fields_of(record).items()
    if record.exc_info:
        assert written["error"]["type"] == "ValueError"


def test_opentelemetry(record):
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    LoggingHandler(logger_provider=provider).handle(record)
    [exported] = exporter.get_finished_logs()
    assert {"event.name": exported.log_record.event_name, **exported.log_record.attributes}.items() >= fields_of(
        record
    ).items()
    if record.exc_info:
        assert exported.log_record.attributes["exception.type"] == "ValueError"
    provider.shutdown()


def test_sentry(record):
    events = []

    class Transport(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope):
            events.append(envelope.get_event())

    client = sentry_sdk.Client(dsn="http://key@127.0.0.1:9/1", transport=Transport, default_integrations=False)
    with sentry_sdk.isolation_scope() as scope:
        scope.set_client(client)
        EventHandler().handle(record)
    client.close()
    [event] = events
    ten = dict(list(fields_of(record).items())[:10])  # it keeps no more of them
    assert event["extra"].items() >= ten.items()
    if record.exc_info:
        [error] = event["exception"]["values"]
        assert error["type"] == "ValueError"
        assert error["stacktrace"]["frames"][-1]["function"] == "raised"


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter(), logging.Formatter()])
def test_behind_a_queue(record, formatter):
    handler = logging.handlers.QueueHandler(queue.SimpleQueue())
    fields, message, failed = fields_of(record), record.getMessage(), bool(record.exc_info)
    handler.handle(record)
    queued = handler.queue.get()
    text = formatter.format(queued)
    assert fields_of(queued) == fields
    assert message in text
    assert ("Traceback" in text) == failed
    if isinstance(formatter, JsonFormatter):
        assert json.loads(text).items() >= fields.items()


def test_plain_formatter_shows_the_essentials(record):
    text = logging.Formatter("%(levelname)s %(name)s %(message)s").format(record)
    assert text.startswith(f"{record.levelname} asgi_closecodes.")
    assert ("Traceback" in text) == bool(record.exc_info)
    if "closecodes.error.id" in vars(record):
        assert f"ref={vars(record)['closecodes.error.id']}" in text
    if "closecodes.gate.cause" in vars(record):
        assert vars(record)["closecodes.gate.cause"] in text
