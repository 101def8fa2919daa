"""What is public, and what an import costs."""

import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

import asgi_closecodes
from asgi_closecodes import client, events, gates, logs, testing
from asgi_closecodes.telemetry import opentelemetry, prometheus, sentry

PACKAGE = Path(asgi_closecodes.__file__).parent


def test_public_names_are_there():
    for module in (asgi_closecodes, client, events, gates, logs, opentelemetry, prometheus, sentry):
        for name in module.__all__:
            public = getattr(module, name)
            assert public.__doc__ or not isinstance(public, type | FunctionType), (
                name
            )  # a type alias has no docstring of its own
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            asgi_closecodes,
            (
                "CloseCodeMiddleware Guard Settings SettingsError Session Close CloseCode CloseWith TryAgainLater "
                "StatusApp"
            ),
        ),
        (
            gates,
            (
                "AllOf ClusterSessions ClusterSessionsPerKey Cpu Gate GateBase HandshakeRate HandshakesInProgress LoopLag "
                "MaxSessions MaxSessionsPerKey Memory Pressure Sensor Shadow client_network"
            ),
        ),
        (
            events,
            " ".join(
                [
                    "Event GateState Observer Outcome Phase SessionFacts Snapshot",
                    *(kind.__name__ for kind in events.KINDS),
                ]
            ),
        ),
        (testing, "Client ReceivedClose Server serve"),
        (client, "Backoff ClientEvent Connecting Ended GaveUp Opened connect"),
        (logs, "ConsoleFormatter JsonFormatter LOGGING LogObserver RedactPaths configure_logging"),
        (opentelemetry, "OpenTelemetryObserver"),
        (prometheus, "PrometheusObserver"),
        (sentry, "before_send"),
    ],
)
def test_public_names_neither_come_nor_go_by_accident(module, names):
    assert sorted(module.__all__) == sorted(names.split())


def test_importing_the_package_imports_no_extra():
    extras = (
        "prometheus_client opentelemetry sentry_sdk psutil redis click rich fastapi trio uvicorn hypercorn httpx "
        "demo_app tests"
    )
    code = f"import sys, asgi_closecodes; print(*{{*{extras.split()!r}}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
