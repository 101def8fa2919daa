"""The installed command, as a process and without one."""

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
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


class Output(io.TextIOWrapper):
    """What is written to stdout, in its encoding; bytes go to its buffer."""

    def __init__(self, encoding="utf-8", *, is_terminal=False):
        super().__init__(io.BytesIO(), encoding, write_through=True)
        self.isatty = lambda: is_terminal

    def getvalue(self):
        return self.buffer.getvalue().decode(self.encoding)


def invoke(*arguments, text="", status=0, stdout=None, **options):
    """Do the same without a process of its own, which is quicker; ``options`` are click's."""
    output, errors = stdout or Output(), io.StringIO()
    with (
        _standard_input(text.encode() if isinstance(text, str) else text),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as ended,
    ):
        words = [os.fsdecode(argument) if isinstance(argument, bytes) else str(argument) for argument in arguments]
        main(words, **options)
    said = output.getvalue(), errors.getvalue()
    assert ended.value.code in ({0, 1, 2} if status is None else {status}), (ended.value.code, *said)
    return said


@contextlib.contextmanager
def _standard_input(content):
    """Have ``content`` come through a pipe, as from a shell."""
    out, into = os.pipe()
    kept = os.dup(0)
    os.dup2(out, 0)
    os.close(out)

    def write():
        with contextlib.suppress(BrokenPipeError), open(into, "wb") as pipe:
            pipe.write(content)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        yield
    finally:
        os.dup2(kept, 0)  # nobody reads what is left
        os.close(kept)
        writing.join()


def run_json(*arguments, **options):
    return json.loads(invoke(*arguments, "--json", **options)[0])
