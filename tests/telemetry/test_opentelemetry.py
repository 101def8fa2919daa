"""Failures on the spans of OpenTelemetry's own instrumentation, under Starlette, FastAPI and around any application."""

import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.starlette import StarletteInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from asgi_closecodes import CloseCodeMiddleware, CloseWith, Guard, Settings
from asgi_closecodes.telemetry.opentelemetry import OpenTelemetryObserver
from tests.support.asgi import Handler, Peer


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


def endpoint_that_raises(error):
    async def endpoint(websocket: WebSocket):
        await websocket.accept()
        await websocket.receive_text()
        if error is not None:
            raise error

    return endpoint


def starlette(error, guard, provider):
    app = Starlette(
        routes=[WebSocketRoute("/rooms/{room}", endpoint_that_raises(error))],
        middleware=[Middleware(CloseCodeMiddleware, guard)],
    )
    StarletteInstrumentor.instrument_app(app, tracer_provider=provider)
    return app


def fastapi(error, guard, provider):
    app = FastAPI()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    app.websocket("/rooms/{room}")(endpoint_that_raises(error))
    app.add_middleware(CloseCodeMiddleware, guard)
    return app


def plain(error, guard, provider):
    return OpenTelemetryMiddleware(CloseCodeMiddleware(Handler(error), guard), tracer_provider=provider)


@pytest.fixture(params=[starlette, fastapi, plain])
def build(request):
    return request.param


def observed(**settings):
    return Guard(Settings(**settings), observers=[OpenTelemetryObserver()])


def server_span(exporter):
    [span] = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    return span


@pytest.mark.anyio
async def test_failure_marks_the_span(build, provider, exporter, caplog):
    peer = Peer("hello", path="/rooms/5")
    await peer.visit(build(KeyError("the secret"), observed(), provider))
    span = server_span(exporter)
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "KeyError"
    assert span.attributes["websocket.close.code"] == 1011
    assert peer.closed == (1011, f"internal error; ref={span.attributes['closecodes.error.id']}")
    assert "the secret" not in span.to_json()
    # The log record has the exception, and the span's id.
    [record] = [record for record in caplog.records if record.name == "asgi_closecodes.error"]
    assert record.span_id == f"{span.context.span_id:016x}"
    assert record.trace_id == f"{span.context.trace_id:032x}"
    if build is not plain:
        assert span.attributes["http.route"] == "/rooms/{room}"


@pytest.mark.anyio
async def test_no_spans_of_our_own(build, provider, exporter):
    await Peer("hello", path="/rooms/5").visit(build(ValueError(), observed(), provider))
    scopes = {span.instrumentation_scope.name for span in exporter.get_finished_spans()}
    assert all(scope.startswith("opentelemetry.instrumentation.") for scope in scopes)


@pytest.mark.anyio
@pytest.mark.parametrize("error", [None, CloseWith(4000)])
async def test_close_that_is_no_failure_does_not_mark_the_span(build, provider, exporter, error):
    await Peer("hello", path="/rooms/5").visit(build(error, observed(), provider))
    span = server_span(exporter)
    assert span.status.status_code is not StatusCode.ERROR
    assert "error.type" not in span.attributes


@pytest.mark.anyio
async def test_exception_travelling_on_is_marked_again(build, provider, exporter):
    """An exception that travels on is marked once more by the instrumentation."""
    with pytest.raises(ValueError, match="a bug"):
        await Peer("hello", path="/rooms/5").visit(build(ValueError("a bug"), observed(reraise=True), provider))
    span = server_span(exporter)
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "ValueError"
    assert "exception" in {event.name for event in span.events}


@pytest.mark.anyio
async def test_instrumentation_inside_marks_its_span_itself(provider, exporter):
    inside = OpenTelemetryMiddleware(Handler(ValueError("a bug")), tracer_provider=provider)
    peer = await Peer().visit(CloseCodeMiddleware(inside, observed()))
    assert peer.closed[0] == 1011
    span = server_span(exporter)
    assert span.status.status_code is StatusCode.ERROR
    assert "websocket.close.code" not in span.attributes


@pytest.mark.anyio
async def test_span_of_the_handler_s_own_marks_itself(provider, exporter):
    tracer = provider.get_tracer("mine")

    async def handler(scope, receive, send):
        with tracer.start_as_current_span("work"):
            await Handler(ValueError("a bug"))(scope, receive, send)

    await Peer().visit(OpenTelemetryMiddleware(CloseCodeMiddleware(handler, observed()), tracer_provider=provider))
    assert server_span(exporter).attributes["websocket.close.code"] == 1011
    [mine] = [span for span in exporter.get_finished_spans() if span.name == "work"]
    assert mine.status.status_code is StatusCode.ERROR
    assert "websocket.close.code" not in mine.attributes


@pytest.mark.anyio
async def test_failure_without_a_span_marks_nothing():
    peer = await Peer().visit(CloseCodeMiddleware(Handler(ValueError()), observed()))
    assert peer.closed[0] == 1011
