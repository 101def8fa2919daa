"""Instructions, counted by valgrind: a process that has imported everything, and forks for each count.

What the children have in common falls out of the difference of two of them.
"""

from __future__ import annotations

import gc
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .suite import Unfit

FEW, MANY = 50, 200
"""Sessions of the two. After the few the interpreter is warm, and logs have written what they write before they count."""


class Counter:
    """A process under valgrind.

    :param folder: for what valgrind writes.
    :raises Unfit: if there is no valgrind.
    """

    def __init__(self, folder: Path) -> None:
        if (valgrind := shutil.which("valgrind")) is None:
            raise Unfit("valgrind is missing: apt-get install valgrind")
        self._folder = folder
        options = ("--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", f"--log-file={folder}/%p")
        self._process = subprocess.Popen(
            [valgrind, *options, sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )

    def each(self, name: str) -> float:
        """Return the instructions of one session of ``name``, see :data:`tests.benchmarks.harness.sessions.SERVED`."""
        return (self._total(name, MANY) - self._total(name, FEW)) / (MANY - FEW)

    def _total(self, name: str, count: int) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(count, name, file=self._process.stdin, flush=True)
        child, status = self._process.stdout.readline().split()
        log = (self._folder / child).read_text()
        assert status == "0", f"sessions of {name} failed: {log}"
        refs = re.search(r"I +refs: +([\d,]+)", log)
        assert refs is not None, log
        return int(refs[1].replace(",", ""))

    def stop(self) -> None:
        """End it."""
        self._process.communicate()


def main() -> None:
    """Fork for each line of standard input, a count and a name; say who the child was, and how it ended."""
    # Time stands still: it is long under valgrind, longer on a busy machine, and logs and the ticker go by it.
    time.monotonic = itertools.repeat(1000.0).__next__
    import uvloop  # noqa: F401 - once for all children

    from asgi_closecodes.guard import ticker

    from .sessions import SERVED, serve

    ticker.TICK_S = 1e6
    for name in SERVED:
        serve(name, 1)  # valgrind translates what runs for the first time, which takes longer than to count

    for line in sys.stdin:
        count, name = line.rstrip("\n").split(" ", 1)
        if (child := os.fork()) == 0:
            serve(name, int(count))
            gc.collect()  # what the sessions have left behind is theirs
            os._exit(0)  # both counts would have the interpreter's end, which valgrind translates for long
        print(*os.waitpid(child, 0), flush=True)


if __name__ == "__main__":
    main()
