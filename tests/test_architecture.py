"""What is public, and what an import costs."""

import ast
import importlib
import inspect
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


def concrete_gates():
    """Return the names of the package's gates."""
    importlib.import_module("asgi_closecodes.gates.cluster")  # or they come when they are asked for
    pending, found = [gates.GateBase], set()
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        is_ours = kind.__module__.startswith(gates.__name__) and not kind.__name__.startswith("_")
        if is_ours and not inspect.isabstract(kind):
            found.add(kind.__name__)
    return found


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
            " ".join(["Cpu Gate GateBase LoopLag Memory Sensor client_network", *sorted(concrete_gates())]),
        ),
        (
            events,
            " ".join(
                [
                    "DrainState Event GateState Observer Outcome Phase SessionFacts Snapshot",
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
        "pythonjsonlogger demo_app tests"
    )
    code = f"import sys, asgi_closecodes; print(*{{*{extras.split()!r}}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


ASKED_WHAT_IT_HAS = {"GateBase.__init_subclass__", "_BareGate", "_check_admit", "as_gate"}
"""The only places that look at what an object has that may be a gate."""

NO_GATES = {"os", "sys", "time", "libc", "settings", "self.settings", "before", "client", "pool"}
"""Modules, settings, a signal's handler, and objects of redis-py."""


def guesses(tree, where=()):
    """Yield where an object is asked for an attribute that it may not have."""
    for node in ast.iter_child_nodes(tree):
        is_named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        within = (*where, node.name) if is_named else where
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"getattr", "hasattr"}:
            asked = ast.unparse(node.args[0])
            if (
                asked not in NO_GATES
                and "getattr(" not in asked
                and not ASKED_WHAT_IT_HAS & {".".join(within), *within}
            ):
                yield f"{'.'.join(within)}: {ast.unparse(node)}"
        yield from guesses(node, within)


@pytest.mark.parametrize("wing", ["gates", "guard"])
def test_gates_permits_and_sensors_are_not_guessed(wing):
    """What they have is said by types, which mypy reads: no getattr but where a bare gate becomes a GateBase."""
    files = [*(PACKAGE / wing).rglob("*.py")]
    assert [f"{file.name}: {one}" for file in files for one in guesses(ast.parse(file.read_text()))] == []
