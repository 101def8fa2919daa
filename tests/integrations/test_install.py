"""A framework that is missing or too old is one clear ImportError."""

import importlib
import importlib.metadata
import sys

import pytest

from asgi_closecodes.integrations import require, session_of

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
