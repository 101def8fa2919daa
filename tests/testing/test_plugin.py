"""The pytest plugin, in runs of its own."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

USING = """
import pytest
from asgi_closecodes import CloseCodeMiddleware, Guard, Settings

async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        raise ValueError("a bug")

@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
def test_crash(closecodes_serve, server):
    close = closecodes_serve(CloseCodeMiddleware(app, Guard(Settings())), server).connect("/ws").wait_closed()
    assert close.code == 1011
    assert close.record["exception.message"] == "a bug"
"""


@pytest.fixture
def run(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # as few others as can be

    def run(source):
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess(
            "-p", "asgi_closecodes.testing.plugin", "-p", "no:cacheprovider", "-W", "error"
        )

    return run


def test_crash_is_seen_by_the_fixture(run):
    run(USING).assert_outcomes(passed=2)
