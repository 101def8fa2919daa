"""``python -m tests.live.stalls [SETUP ...]``: see how many stalls are attributed to the line that blocked.

Each kind blocks 50 times; the machine may be busy. It takes some minutes, and is no part of CI.
"""

import inspect
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil
import websockets.sync.client

from tests.live.stalls.app import KINDS
from tests.support.servers import serve

TIMES = 50
LOG_STALLS_S = 0.2
IDLE_S = 30


def line_of(kind):
    """Return the line that blocks."""
    lines, first = inspect.getsourcelines(kind)
    [offset] = [number for number, line in enumerate(lines) if line.rstrip().endswith("# BLOCKS")]
    return first + offset


def stalls(running):
    records = [json.loads(line) for line in running.log().splitlines() if line.startswith("{")]
    return [record for record in records if record.get("event.name") == "closecodes.loop.stalled"]


def judge(records, kind):
    """Return how many of the stalls have the right line, and the right line and route."""
    right = [
        record
        for record in records
        if record.get("code.line.number") == line_of(kind)
        and record.get("code.file.path", "").endswith("stalls/app.py")
    ]
    return len(right), sum(record.get("http.route") == "/blocks/{kind}" for record in right)


def drive(running, kind):
    """Have the server block; return what it says of that, and the seconds that it took."""
    before, took = len(stalls(running)), []
    with websockets.sync.client.connect(f"{running.url}/blocks/{kind}", proxy=None) as client:
        for _ in range(TIMES):
            time.sleep(0.25)
            began = time.monotonic()
            client.send("now")
            client.recv()
            took.append(time.monotonic() - began)
    time.sleep(1)
    return stalls(running)[before:], sorted(took)


def idle_share(setup, directory, **env):
    """Return the share of a core that the server takes without any client."""
    with serve(setup, "tests.live.stalls.app:app", directory, env=env) as running:
        time.sleep(3)
        process = psutil.Process(running.process.pid)
        before = process.cpu_times()
        time.sleep(IDLE_S)
        after = process.cpu_times()
        return (after.user + after.system - before.user - before.system) / IDLE_S


def main():
    for setup in sys.argv[1:] or ["uvicorn-sansio"]:
        with tempfile.TemporaryDirectory() as directory:
            env = {"CLOSECODES_LOG_STALLS": str(LOG_STALLS_S), "CLOSECODES_LOG_BURST": "none"}
            with serve(setup, "tests.live.stalls.app:app", Path(directory), env=env) as running:
                for name, kind in KINDS.items():
                    found, took = drive(running, name)
                    right, with_route = judge(found, kind)
                    others = [f"{one.get('code.file.path')}:{one.get('code.line.number')}" for one in found]
                    others = sorted({one for one in others if not one.endswith(f"app.py:{line_of(kind)}")})
                    print(
                        f"{setup} {name:17} blocked {len(took)} times for {took[len(took) // 2]:.2f} s: "
                        f"{len(found)} reports, line {right / TIMES:.0%}, route {with_route / TIMES:.0%} {others or ''}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
