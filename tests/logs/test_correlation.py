"""What ties a record to others: trace ids of OpenTelemetry, the correlation id of asgi-correlation-id."""

import json
import uuid

import anyio
import pytest
from asgi_correlation_id import CorrelationIdMiddleware
from asgi_correlation_id.context import correlation_id
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN, use_span

from asgi_closecodes import CloseCodeMiddleware, Guard
from asgi_closecodes.gates import MaxSessions
from asgi_closecodes.logs import JsonFormatter
from tests.support.asgi import Handler, Peer


def written(records):
    return [json.loads(JsonFormatter().format(record)) for record in records]


@pytest.mark.anyio
async def test_records_name_the_span_that_is_current(records):
    app = CloseCodeMiddleware(Handler(ValueError()), Guard())
    records.clear()
    with TracerProvider(shutdown_on_exit=False).get_tracer("tests").start_as_current_span("request") as span:
        await Peer().visit(app)
    context = span.get_span_context()
    assert {(record["trace_id"], record["span_id"]) for record in written(records)} == {
        (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    }
    assert any(record["event.name"] == "closecodes.session.exception" for record in written(records))


@pytest.mark.anyio
async def test_trace_id_without_a_valid_span_is_none(records):
    with use_span(INVALID_SPAN):
        await Peer().visit(CloseCodeMiddleware(Handler(ValueError()), Guard()))
    assert not [record for record in written(records) if "trace_id" in record or "span_id" in record]


@pytest.mark.anyio
@pytest.mark.parametrize("gate", [None, MaxSessions(0)])
async def test_records_have_the_correlation_id(records, gate):
    app = CorrelationIdMiddleware(CloseCodeMiddleware(Handler(ValueError()), Guard(gate=gate)))
    name = uuid.uuid4().hex
    records.clear()
    await Peer(headers=[(b"x-request-id", name.encode())]).visit(app)
    assert {record.get("correlation_id") for record in written(records)} <= {name, None}
    assert written(records)[-1]["correlation_id"] == name


@pytest.mark.anyio
async def test_correlation_id_forges_no_line(records):
    token = correlation_id.set("a\nERROR forged\x1b[2J" + "x" * 1000)
    try:
        with anyio.CancelScope():
            await Peer().visit(CloseCodeMiddleware(Handler(ValueError()), Guard()))
    finally:
        correlation_id.reset(token)
    [found] = {record.get("correlation_id") for record in written(records)}
    assert found.isprintable()
    assert len(found) == 128
