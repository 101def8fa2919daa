"""Imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import asgi_closecodes
from asgi_closecodes import client, gates, logs
from asgi_closecodes.telemetry import opentelemetry, prometheus, sentry

PACKAGE = Path(asgi_closecodes.__file__).parent

MAY_KNOW = {
    "codes": set(),
    "token_bucket": set(),
    "concurrency": set(),
    "channel": {"concurrency"},
    "error_identity": set(),
    "retry": set(),
    "events": {"codes"},
    "metrics": {"codes", "events", "error_identity"},
    "prometheus": {"metrics"},
    "opentelemetry": {"events", "error_identity", "metrics"},
    "sentry": {"logs"},
    "exceptions": {"codes"},
    "session": {"concurrency", "channel", "codes", "error_identity", "events", "exceptions", "error_identity"},
    "gates": {"concurrency", "channel", "codes", "events", "exceptions", "token_bucket", "session"},
    "cli": {"codes", "error_identity", "gates", "logs"},
    "logs": {"codes", "events", "error_identity", "token_bucket"},
    "client": {"concurrency", "channel", "codes"},
    "settings": {"codes", "gates"},
    "shedding": {"session"},
    "sigterm": {"concurrency", "channel", "events"},
    "tally": {"codes", "events", "error_identity"},
    "guard": {
        *("concurrency", "channel", "events", "exceptions", "gates", "logs", "token_bucket", "retry", "session"),
        *("settings", "shedding", "sigterm", "tally"),
    },
    "middleware": {"concurrency", "events", "exceptions", "gates", "guard", "settings"},
    "status": {"events", "guard"},
    "__init__": {"codes", "exceptions", "guard", "middleware", "session", "settings", "status"},
}


def part_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_by(file):
    """The parts of this package that ``file`` imports."""
    package = ["asgi_closecodes", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            modules = [[*module, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for module in modules:
            assert module[0] not in {"demo_app", "tests"}
            if module[0] == "asgi_closecodes" and len(module) > 1:
                yield module[1]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_knows_only_what_lies_below_it(file):
    part = part_of(file)
    assert set(imported_by(file)) - {part} <= MAY_KNOW[part]


def test_there_is_no_circle():
    def below(part, path=()):
        assert part not in path, path
        return {part}.union(*(below(known, (*path, part)) for known in MAY_KNOW[part]))

    assert below("middleware") < below("__init__") | {"middleware"}


def test_public_names_are_there():
    for module in (asgi_closecodes, client, gates, logs, opentelemetry, prometheus, sentry):
        for name in module.__all__:
            assert getattr(module, name).__doc__
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
                "AllOf ClusterSessions ClusterSessionsPerKey Cpu Gate HandshakeRate HandshakesInProgress LoopLag "
                "MaxSessions MaxSessionsPerKey Memory Pressure Sensor Shadow client_network"
            ),
        ),
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
