"""A framework that is missing or too old is one clear ImportError."""

import importlib
import importlib.metadata
import sys

import pytest

from asgi_closecodes import CloseCodeMiddleware, Guard
from asgi_closecodes.integrations import require, session_of
from tests.support.programs import module

INTEGRATIONS = {"litestar": "litestar", "quart": "quart", "socketio": "python-socketio"}


def import_anew(name, monkeypatch):
    monkeypatch.delitem(sys.modules, f"asgi_closecodes.integrations.{name}", raising=False)
    importlib.import_module(f"asgi_closecodes.integrations.{name}")


@pytest.mark.parametrize(("name", "distribution"), INTEGRATIONS.items())
def test_import_framework_missing_says_what_to_install(name, distribution, monkeypatch):
    def version(asked):
        raise importlib.metadata.PackageNotFoundError(asked)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=f"needs {distribution} .* not installed: pip install '{distribution}>="):
        import_anew(name, monkeypatch)


@pytest.mark.parametrize(("name", "distribution"), INTEGRATIONS.items())
@pytest.mark.parametrize("installed", ["0.1", "0.18.4"])
def test_import_framework_too_old_says_which_is_needed(name, distribution, installed, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda asked: installed)
    with pytest.raises(ImportError, match=f"needs {distribution} .* but {installed} is installed: pip install"):
        import_anew(name, monkeypatch)


@pytest.mark.parametrize("installed", ["2.13", "2.13.0rc1", "2.13.1", "3", "10.0.dev1"])
def test_require_enough_is_silent(installed, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda asked: installed)
    require("litestar", "2.13")


@pytest.mark.parametrize("scope", [{"type": "http"}, {"extensions": None}, {"extensions": {"closecodes": "x"}}])
def test_session_of_scope_without_one_is_none(scope):
    assert session_of(scope) is None


def litestar():
    from litestar import Litestar

    from asgi_closecodes.integrations.litestar import install

    app = Litestar()
    return app, install, lambda: app.after_exception


def quart():
    from quart import Quart, got_websocket_exception

    from asgi_closecodes.integrations.quart import install

    app = Quart("twice")
    return app, install, lambda: [*got_websocket_exception.receivers_for(app), *app.before_websocket_funcs[None]]


def socketio():
    from socketio import AsyncServer

    from asgi_closecodes.integrations.socketio import install

    sio, guard = AsyncServer(async_mode="asgi"), Guard()
    sio.on("x", print)
    return sio, lambda sio: install(sio, guard), lambda: [sio.on, sio.handle_request, sio.handlers["/"]["x"]]


@pytest.mark.parametrize("kind", [litestar, quart, socketio])
def test_install_twice_is_once(kind):
    module(kind.__name__)
    app, install, hooks = kind()
    before = [*hooks()]
    install(app)
    once = [*hooks()]
    assert once != before
    install(app)
    assert [*hooks()] == once


@pytest.mark.parametrize("kind", [litestar, quart, socketio])
def test_install_wrapped_application_says_what_to_do(kind):
    module(kind.__name__)
    app, install, _ = kind()
    with pytest.raises(
        TypeError, match=f"takes the {type(app).__name__} itself, not CloseCodeMiddleware: call it first"
    ):
        install(CloseCodeMiddleware(app))
