"""What is run, and which tests cannot pass behind the middleware."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Suite:
    """The tests of one project: all files that speak of WebSockets."""

    name: str
    extras: tuple[str, ...]
    """What they import and this project's own extra ``test`` lacks."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Files that are not run, and why."""
    expected_red: dict[str, str] = field(default_factory=dict)
    """Test id, with or without its parameters (then for all of them): why it cannot pass."""


SUITES = (
    Suite(
        "starlette",
        extras=(
            "httpx2[zstd]",
            "blockbuster",
            "itsdangerous",
            "jinja2",
            "python-multipart",
            "opentelemetry-sdk",
            "pyyaml",
        ),
    ),
    Suite(
        "uvicorn",
        extras=("httpx2", "httptools", "trustme", "pytest-mock", "a2wsgi", "zttp", "pyyaml"),
        left_out={"tests/test_config.py": "looks at which object Config has loaded, and opens no WebSocket"},
        expected_red={
            f"tests/protocols/test_websocket.py::{test}": reason
            for test, reason in {
                "test_asgi_return_value": "asserts 1006 for a handler that returns without closing: it gets 1000",
                "test_close_transport_on_asgi_return": "asserts 1006 for a handler that returns without closing: it gets 1000",
                "test_duplicate_handshake": "asserts 1006 for a handler that accepts twice, which raises: it gets 1011",
                "test_missing_handshake": "asserts HTTP 500 for a handler that returns without an answer: it gets 403",
                "test_send_before_handshake": "asserts HTTP 500 for a handler that sends before it accepts, which raises: it gets 1011",
                "test_server_reject_connection_with_invalid_status": "asserts HTTP 500 for a refusal with status 700, which the server refuses: it gets 1011",
            }.items()
        }
        | {
            f"tests/protocols/test_websocket.py::test_server_multiple_websocket_http_response_start_events[wsproto-{http}]": (
                "asserts the words of uvicorn's error for a second start: the middleware raises the same RuntimeError, "
                "with words of its own, and the client gets the same 404"
            )
            for http in ("h11", "httptools", "zttp")
        },
    ),
    Suite(
        "fastapi",
        extras=(
            "httpx2",
            "python-multipart",
            "dirty-equals",
            "inline-snapshot",
            "pytest-xdist",
            "opentelemetry-sdk",
            "opentelemetry-exporter-otlp-proto-http",
            "opentelemetry-instrumentation-fastapi",
            "logfire",
            "sentry-sdk",
        ),
    ),
)
