"""Markers of tests, and a check that they are there: what runs without them starts no server, browser or Redis."""

import functools
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]

NEEDS = {
    "benchmarks/test_suite.py": ["servers"],
    "cli/capacity::limited": ["servers"],
    "cli/capacity::secure": ["servers"],
    "cli/capacity::server": ["servers"],
    "cli/capacity/test_capacity.py::test_few_files_of_the_server_are_told": ["servers"],
    "cli/logs/test_logs.py::test_from_the_close_reason_to_the_stack_trace": ["servers"],
    "client::server": ["servers"],
    "client/test_connect.py::test_connect_survives_a_restart_of_the_server": ["servers"],
    "client/test_connect.py::test_connect_to_a_server_that_accepts_to_close_backs_off": ["servers"],
    "demo_app/test_chat.py": ["servers"],
    "demo_app/test_cluster.py": ["servers", "redis"],
    "demo_app/test_demo.py": ["servers"],
    "documentation::browser": ["browser"],
    "gates/cluster::binary": ["redis"],
    "gates/cluster::servers": ["redis"],
    "gates/cluster/test_from_settings.py::test_cluster_event_is_logged_in_one_line": ["redis"],
    "gates/cluster/test_gate.py": ["redis"],
    "gates/cluster/test_per_key.py": ["redis"],
    "gates/cluster/test_processes.py": ["servers", "redis"],
    "gates/cluster/test_replace.py": ["redis"],
    "gates/cluster/test_servers.py": ["redis"],
    "gates/cluster/test_tls.py": ["redis"],
    "gates/cluster/test_topologies.py": ["redis"],
    "integrations::application": ["servers"],
    "integrations/test_front_ends.py": ["servers"],
    "integrations/test_recipes.py": ["servers"],
    "live": ["servers"],
    "live/browser": ["browser"],
    "telemetry/dashboards/test_dashboards.py::test_real_prometheus_fills_every_panel": ["servers"],
}
"""Markers by folder or file, or by a test or a fixture in it. `slow` stands at the test."""

PROGRAMS = {
    **dict.fromkeys(["daphne", "demo_app", "granian", "gunicorn", "hypercorn", "prometheus", "uvicorn"], "servers"),
    **dict.fromkeys(["redis-server", "valkey-server"], "redis"),
    "run-driver": "browser",  # of playwright
}
"""What shows, in a command line, that a process needs its marker."""


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    for item in items:
        of_file = _needs(item.path)
        for name in ("", item.originalname, *item.fixturenames) if of_file else ():
            for marker in of_file.get(name, ()):
                item.add_marker(marker)
    # Files that wait for other processes come first: a worker that begins one last would be alone at the end.
    patient = {item.path for item in items if any(map(item.get_closest_marker, ("servers", "browser", "redis")))}
    items.sort(key=lambda item: item.path not in patient)


@functools.cache
def _needs(path: Path) -> dict[str, set[str]]:
    """Return the markers of all tests in a file, as those of "", and those by a test or a fixture."""
    file = path.relative_to(TESTS)
    places = {file.as_posix(), *map(str, file.parents)}
    needs: dict[str, set[str]] = {}
    for key, markers in NEEDS.items():
        place, _, name = key.partition("::")
        if place in places:
            needs.setdefault(name, set()).update(markers)
    return needs


_running: list[pytest.Item] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _running.append(item)
    try:
        return (yield)
    finally:
        _running.remove(item)


def _check_marker(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and _running and "--help" not in arguments[1]:
        for word in arguments[1]:
            marker = PROGRAMS.get(Path(os.fsdecode(word)).name)
            if marker and not _running[-1].get_closest_marker(marker):
                pytest.fail(f"{_running[-1].nodeid} starts {os.fsdecode(word)}: add {marker} to NEEDS in {__file__}")


sys.addaudithook(_check_marker)
