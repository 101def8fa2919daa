"""The installed command as a process."""

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asgi_closecodes.cli import main

COMMAND = str(Path(sys.executable).with_name("asgi-closecodes"))
ENVIRONMENT = {**os.environ, "TZ": "UTC", "PYTHONUTF8": "1"}


class Process(subprocess.Popen):
    """A process that does not outlive its block."""

    def __exit__(self, *error):
        self.kill()
        super().__exit__(*error)


def start(*arguments, **options):
    """Run the command; it can be interrupted, which a shell in the background has its children ignore."""
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRONMENT}
    given["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return Process([COMMAND, *map(str, arguments)], **{**given, **options})


def run(*arguments, text="", status=0, **options):
    """Run the command to its end, and return what it printed to stdout and to stderr."""
    with start(*arguments, **{"stdin": subprocess.PIPE, **options}) as process:
        output, errors = process.communicate(text.encode() if isinstance(text, str) else text, timeout=60)
    assert process.returncode == status, (process.returncode, output, errors)
    assert b"Traceback" not in errors
    return output.decode(), errors.decode()


def invoke(*arguments, status=0):
    """Do the same without a process of its own, which is quicker."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    said = output.getvalue(), errors.getvalue()
    assert ended.value.code in ({0, 1, 2} if status is None else {status}), (ended.value.code, *said)
    return said


def run_json(*arguments, **options):
    return json.loads((run if options else invoke)(*arguments, "--json", **options)[0])
