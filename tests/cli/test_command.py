"""The command as a whole: what it needs, what it says of itself, how it ends."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from .command import COMMAND, ENVIRONMENT, invoke, run


def test_command_says_what_there_is():
    assert "logs" in run("--help")[0]
    assert invoke("--version")[0].split()[-1] == version("asgi-closecodes")
    for command in ("show", "errors", "closes", "tail", "lnav-format"):
        assert command in invoke("logs", "--help")[0]
        assert "Usage: " in invoke("logs", command, "-h")[0]


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extra_it_says_how_to_install_it(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = [{COMMAND!r}]; exec(open({COMMAND!r}).read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "asgi-closecodes needs click and rich: pip install 'asgi-closecodes[cli]'\n"


def test_command_is_imported_when_it_is_asked_for():
    code = "import sys; from asgi_closecodes.cli import main; print('asgi_closecodes.cli.logs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete_it(shell, monkeypatch):
    monkeypatch.setenv("_ASGI_CLOSECODES_COMPLETE", f"{shell}_source")
    assert "_ASGI_CLOSECODES_COMPLETE" in invoke(prog_name="asgi-closecodes")[0]
    monkeypatch.setenv("_ASGI_CLOSECODES_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "asgi-closecodes logs ")
    monkeypatch.setenv("COMP_CWORD", "" if shell == "fish" else "2")
    assert "errors" in invoke(prog_name="asgi-closecodes")[0]


def test_command_as_installed_completes():
    words = {"_ASGI_CLOSECODES_COMPLETE": "bash_complete", "COMP_WORDS": "asgi-closecodes logs ", "COMP_CWORD": "2"}
    assert "errors" in run(env={**ENVIRONMENT, **words})[0]


def test_unknown_commands_and_options_are_usage_errors():
    assert "No such command 'nonsense'" in invoke("nonsense", status=2)[1]
    assert "No such option" in invoke("logs", "errors", "--nonsense", status=2)[1]
