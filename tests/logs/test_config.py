"""Configurations that work as they stand."""

import json
import logging
import re
import runpy
import subprocess
import sys
from importlib.resources import files

import pytest
import yaml

from asgi_closecodes.logs import LOGGING, RedactPaths, configure_logging


def test_files_say_what_the_dictionary_says():
    of_package = files("asgi_closecodes.logs")
    assert json.loads(of_package.joinpath("uvicorn.json").read_text()) == LOGGING
    assert yaml.safe_load(of_package.joinpath("uvicorn.yaml").read_text()) == LOGGING


@pytest.mark.parametrize("arguments", [[], ["json"], ["yaml"]])
def test_command_tells_where_they_are(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["logs", *arguments])
    runpy.run_module("asgi_closecodes.logs", run_name="__main__")
    assert capsys.readouterr().out == f"{files('asgi_closecodes.logs')}/uvicorn.{(arguments or ['json'])[0]}\n"


def test_config_knows_no_other_form():
    done = subprocess.run([sys.executable, "-m", "asgi_closecodes.logs", "toml"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "form must be json or yaml, not 'toml'\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("127.0.0.1:1", "/ws/rooms?token=hunter2&x=?"),
            '127.0.0.1:1 - "WebSocket /ws/rooms" [accepted]',
        ),
        (("unix", "/"), 'unix - "WebSocket /" [accepted]'),
        (("a\x1b[2Jb", "/x\ny?z"), 'a\\x1b[2Jb - "WebSocket /x%0Ay" [accepted]'),
        (("a", "/a%20b/eyJhbGciOi.e30.abcdef0123?x"), 'a - "WebSocket /a%20b/REDACTED" [accepted]'),
        (("a", "http%3A//host/ws?token=hunter2"), 'a - "WebSocket http%3A//host/ws" [accepted]'),
        (("a", "http://user:hunter2@host/ws?x"), 'a - "WebSocket http://user:REDACTED@host/ws" [accepted]'),
        (("a", "*?token=hunter2"), 'a - "WebSocket *" [accepted]'),
        (("a", "user:hunter2@host:443"), 'a - "WebSocket user:REDACTED@host:443" [accepted]'),
        (("a", "%2Fws%3Ftoken=hunter2"), 'a - "WebSocket %2Fws%3Ftoken=REDACTED" [accepted]'),
        (("a", "ws;token=hunter2"), 'a - "WebSocket ws;token=REDACTED" [accepted]'),
        (("a", "host:443?hunter2"), 'a - "WebSocket host:443" [accepted]'),
        (("a", "?token=hunter2"), 'a - "WebSocket " [accepted]'),
        (("a", "/ws#token=hunter2?x"), 'a - "WebSocket /ws" [accepted]'),
        (("a", "/ws%23token=hunter2"), 'a - "WebSocket /ws%23token=REDACTED" [accepted]'),
        (("fe80::a1b2:c3d4:e5f6:a7b8:1", "/ws"), 'fe80::a1b2:c3d4:e5f6:a7b8:1 - "WebSocket /ws" [accepted]'),
    ],
)
def test_uvicorn_s_records_lose_query_strings_and_tokens(arguments, line):
    record = logging.LogRecord("uvicorn.error", 20, "", 1, '%s - "WebSocket %s" [accepted]', arguments, None)
    assert RedactPaths().filter(record)
    assert record.getMessage() == line


def test_other_records_pass_as_they_are():
    for arguments in ((), (5, None), {"a": "/b?c"}):
        record = logging.LogRecord("uvicorn.error", 20, "", 1, "text", None, None)
        record.args = arguments
        assert RedactPaths().filter(record)
        assert record.args == arguments


def test_configure_logging_sees_to_it_once():
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "uvicorn.access")]
    for _ in range(2):
        configure_logging("json", logger="configured.by.tests")
    assert all([type(kept) for kept in logger.filters].count(RedactPaths) == 1 for logger in loggers)


_RENAMES = """
import json, logging.config, os, sys
path = sys.argv[2]
logging.config.dictConfig(json.loads(sys.argv[1]))
logging.getLogger("app").info("one")
os.rename(path, path + ".1")
logging.getLogger("app").info("two")
"""


def test_configuration_in_the_readme_survives_a_rename(tmp_path):
    page = files("asgi_closecodes.logs").joinpath("README.md").read_text(encoding="utf-8")
    [config] = [
        json.loads(block)
        for block in re.findall(r"^```json\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        if "()" in block
    ]
    assert config["handlers"]["file"]["filename"] == "/var/log/chat/app.log"
    path = config["handlers"]["file"]["filename"] = str(tmp_path / "app.log")
    subprocess.run([sys.executable, "-c", _RENAMES, json.dumps(config), path], check=True)
    written = [json.loads((tmp_path / name).read_text())["message"] for name in ("app.log.1", "app.log")]
    assert written == ["one", "two"]
