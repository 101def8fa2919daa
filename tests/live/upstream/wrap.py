"""A pytest plugin: wraps the applications of somebody else's tests, and writes down how each test went.

It runs inside of an unpacked release, whose own package is called ``tests`` too: so it is loaded by path, as ``wrap``,
and imports nothing from beside it.
"""

import functools
import json
import os
from collections import Counter

import pytest
import starlette.applications
import starlette.testclient
import uvicorn

from asgi_closecodes import CloseCodeMiddleware, Settings

WRAPPED = os.environ["UPSTREAM_WRAPPED"] == "1"

running = ""
outcomes: dict[str, str] = {}
traces: dict[str, str] = {}
sessions: Counter[str] = Counter()


class Wrapped(CloseCodeMiddleware):
    """The middleware, counting WebSockets, and otherwise as good as the application for a test that looks at it."""

    def __init__(self, app):
        super().__init__(app, settings=Settings(reraise=True))

    def __getattr__(self, name):
        return getattr(self.app, name)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":
            sessions[running] += 1
        return await super().__call__(scope, receive, send)


def pytest_configure():
    if not WRAPPED:
        return
    init = starlette.testclient.TestClient.__init__
    load = uvicorn.Config.load
    call = starlette.applications.Starlette.__call__

    def wrapping_init(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.app = self._transport.app = Wrapped(self.app)

    def wrapping_load(self):
        load(self)
        self.loaded_app = Wrapped(self.loaded_app)

    async def wrapping_call(self, scope, receive, send):
        if scope["type"] == "websocket" and "closecodes" not in (scope.get("extensions") or ()):
            await Wrapped(functools.partial(call, self))(scope, receive, send)  # the test has called it itself
        else:
            await call(self, scope, receive, send)

    starlette.testclient.TestClient.__init__ = wrapping_init
    uvicorn.Config.load = wrapping_load
    starlette.applications.Starlette.__call__ = wrapping_call


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    global running  # noqa: PLW0603 - of this process
    running = item.nodeid


def pytest_collectreport(report):
    if report.failed:
        outcomes[report.nodeid] = "not collected"
        traces[report.nodeid] = report.longreprtext


def pytest_runtest_logreport(report):
    if report.failed:
        outcomes[report.nodeid] = "failed"
        traces[report.nodeid] = report.longreprtext
    elif report.when == "call" or report.skipped:
        outcomes.setdefault(report.nodeid, report.outcome)


def pytest_sessionfinish():
    result = {"outcomes": outcomes, "traces": traces, "sessions": sessions}
    with open(os.environ["UPSTREAM_RESULT"], "w") as file:
        json.dump(result, file)
