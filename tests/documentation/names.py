"""Names on the pages: settings, environment variables, extras, modules, metrics, events and keys of the log."""

import functools
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import PurePath

from asgi_closecodes.logs.messages import LINES, SUMMARIES
from asgi_closecodes.settings import Settings, SettingsError
from asgi_closecodes.telemetry.metrics import METRICS
from asgi_closecodes.testing import plugin
from tests.support import generated

from .pages import ROOT, Page, tracked
from .shell import known_extras

_ASSIGNED = re.compile(r"(?<![A-Z_])CLOSECODES_([A-Z][A-Z_]*[A-Z])(?:=([^\s`\"'$…,;)]+))?")
_EXTRAS = re.compile(r"\basgi-closecodes\[([\w,-]+)\]")
_DOTTED = re.compile(r"(?<![\w./])asgi_closecodes((?:\.\w+)+)")
_METRIC = re.compile(r"\bclosecodes_[a-z_]+[a-z]")
_KEY = re.compile(r"(?<![\w./-])closecodes(?:\.[a-z_]*[a-z])+(?![\w/]|\.\w)")
_IDENTIFIER = re.compile(r"(?<![\w/-])(?!CLOSECODES_|closecodes_)[A-Za-z]+(?:_[A-Za-z0-9_]+|[a-z]+[A-Z]\w*)(?![\w/-])")
_OF_OTHERS = {
    *("ExecReload", "ExecStart", "ExecStop", "KillMode", "StandardError", "TimeoutStopSec"),  # systemd
    *("RotatingFileHandler", "WatchedFileHandler"),  # logging
    *("bash_source", "zsh_source"),  # click
    *("bufferedAmount", "readyState"),  # browsers
    "StrictMode",  # React
    "get_asgi_application",  # Django
    *("averageValue", "limit_req"),  # Kubernetes, nginx
    "stop_grace_period",  # Compose
    *("api_transformer", "as_fastapi", "flet_web", "websocket_callbacks"),  # Reflex, Rio, Flet, Dash
}
"""Identifiers on the pages that are neither ours nor used by our code."""


def unknown_names(page: Page) -> Iterator[str]:
    """Yield the names of this library's that it does not have."""
    for line, head, code in page.columns:
        if head == "setting" and re.fullmatch(r"[a-z_]+", code) and code not in Settings.model_fields:
            yield f"{page.name}:{line}: there is no setting {code}"
    for line, code in page.codes:
        for name in _IDENTIFIER.findall(code):
            if name not in _identifiers():
                yield f"{page.name}:{line}: {name} is nowhere in the code; is it one of _OF_OTHERS in names.py?"
    for line, text in enumerate(page.text.splitlines(), 1):
        for why in _unknown(text):
            yield f"{page.name}:{line}: {why}"


def _unknown(text):
    for name, value in _ASSIGNED.findall(text):
        if name.lower() not in Settings.model_fields:
            yield f"there is no setting CLOSECODES_{name}"
        elif value and (why := _refused(name.lower(), value.rstrip(".:"))):
            yield why
    for extras in _EXTRAS.findall(text):
        yield from (f"there is no extra {extra}" for extra in extras.split(",") if extra not in known_extras())
    for path in _DOTTED.findall(text):
        if not _resolves(path):
            yield f"there is no asgi_closecodes{path}"
    for name in _METRIC.findall(text):
        if re.sub("_(bucket|sum|count)$", "", name) not in _metrics() and not hasattr(plugin, name):
            yield f"there is no metric {name}"
    for name in _KEY.findall(text):
        if not any(f"{known}.".startswith(f"{name}.") for known in _keys()):
            yield f"there is no event or key {name}"


def _refused(name, value):
    try:
        Settings(**{"redis_url": "redis://localhost", name: value})
    except SettingsError as error:
        return str(error).splitlines()[1].strip()
    return None


@functools.cache
def _resolves(path):
    if f"asgi_closecodes{path}" in {line.logger.name for line in LINES.values()}:
        return True
    found, name = importlib.import_module("asgi_closecodes"), "asgi_closecodes"
    for part in path.split(".")[1:]:
        name += f".{part}"
        try:
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(name)
        except ImportError:
            return False
    return True


@functools.cache
def _metrics():
    return {metric.name for metric in METRICS}


@functools.cache
def _keys():
    schema = json.loads(generated.SCHEMA.read_text(encoding="utf-8"))
    dotted = {re.sub("_(total|seconds)$", "", name).replace("_", ".") for name in _metrics()}
    return {*schema["properties"], *SUMMARIES.values(), *(line.name for line in LINES.values()), *dotted}


@functools.cache
def _identifiers():
    """Return what is written in the code of the package, the demo and the tests; here names are made up."""
    words = set(_OF_OTHERS)
    for name in tracked():
        if re.match(r"(asgi_closecodes|demo_app|tests/(?!documentation/))[^.]*\.(c?js|lua|py|ya?ml)", name):
            words.add(PurePath(name).stem)
            words.update(re.findall(r"\w+", (ROOT / name).read_text(encoding="utf-8")))
    return words
