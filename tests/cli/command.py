"""The installed command as a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from asgi_closecodes.cli import main

COMMAND = str(Path(sys.executable).with_name("asgi-closecodes"))
ENVIRONMENT = {**os.environ, "TZ": "UTC", "PYTHONUTF8": "1"}


def start(*arguments, **options):
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([COMMAND, *map(str, arguments)], **{**pipes, "env": ENVIRONMENT, **options})


def run(*arguments, text="", status=0, **options):
    """Run the command to its end, and return what it printed to stdout and to stderr."""
    with start(*arguments, **{"stdin": subprocess.PIPE, **options}) as process:
        output, errors = process.communicate(text.encode() if isinstance(text, str) else text, timeout=60)
    assert process.returncode == status, (process.returncode, output, errors)
    assert b"Traceback" not in errors
    return output.decode(), errors.decode()


def invoke(*arguments, status=0):
    """Do the same without a process of its own, which is quicker."""
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code in ({0, 1, 2} if status is None else {status}), (done.exit_code, done.output)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.stdout, done.stderr


def run_json(*arguments, **options):
    return json.loads((run if options else invoke)(*arguments, "--json", **options)[0])
