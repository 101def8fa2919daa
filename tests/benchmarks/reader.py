"""How long ``asgi-closecodes logs`` reads in 1 GiB of log, and at how much memory, beside jq.

The log is that of a busy service: mostly access and application lines, one refusal in eleven, one error in a hundred.
"""

import datetime as dt
import json
import random
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil

from .harness.paired import Comparison
from .harness.suite import Benchmark, Unfit

COMMAND = Path(sys.executable).with_name("asgi-closecodes")
S, MIB = "s", "MiB at most"
BENCHMARK = Benchmark(
    "Reading 1 GiB of log: `asgi-closecodes logs` beside `jq -c 'select(.level==\"error\")'`",
    [
        Comparison(S, "errors", "jq", most=1.0),
        Comparison(S, "closes", "jq", most=1.0),
        Comparison(MIB, "errors", most=100),
        Comparison(MIB, "closes", most=100),
    ],
    pairs=7,
    warms_up=False,
)

_LIBRARY = "/app/.venv/lib/python3.12/site-packages"
_TRACE = "".join(
    [
        "Traceback (most recent call last):\n",
        *(
            f'  File "{_LIBRARY}/starlette/routing.py", line {line}, in handle\n    await self.app(scope, receive, send)\n'
            for line in range(700, 720)
        ),
        '  File "/app/rooms.py", line 56, in join\n    await room.members[key]\n',
        "KeyError: 'x'\n",
    ]
)


def generate(file, size, seed=1):
    """Write a log of about ``size`` bytes, and return how many errors it tells of, those included that it only counts."""
    rng = random.Random(seed)
    time, written, errors = 1_790_000_000.0, 0, 0
    while written < size:
        time += rng.expovariate(200)
        stamp = dt.datetime.fromtimestamp(time, dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        keys, failed = _line(rng)
        errors += failed
        line = json.dumps({"timestamp": stamp, **keys, "process.pid": rng.randrange(10, 14)}) + "\n"
        file.write(line.encode())
        written += len(line)
    return errors


def _line(rng):
    kind, number = rng.random(), rng.randrange(10**6)
    client = f"10.0.{rng.randrange(256)}.{rng.randrange(256)}:{rng.randrange(1024, 65536)}"
    if kind < 0.55:
        message = f'{client} - "GET /api/rooms/{number} HTTP/1.1" 200'
        return {"level": "info", "logger": "uvicorn.access", "message": message}, 0
    if kind < 0.75:
        message = f'{client} - "WebSocket /rooms/{number}" [accepted]'
        return {"level": "info", "logger": "uvicorn.error", "message": message}, 0
    if kind < 0.9:
        message = f"member {number} said something"
        trace = f"{rng.getrandbits(128):032x}"
        return {"level": "info", "logger": "app.rooms", "message": message, "trace_id": trace, "room.size": number}, 0
    session = {
        "closecodes.session.id": f"{rng.getrandbits(48):012x}",
        "http.route": "/rooms/{id}",
        "url.path": f"/rooms/{number}",
        "url.scheme": "ws",
        "network.protocol.name": "websocket",
        "client.address": client.partition(":")[0],
        "client.port": 50000,
    }
    suppressed = rng.choice([0, 0, 0, 0, 20])
    if kind < 0.99:
        return {
            "level": "warning",
            "logger": "asgi_closecodes.gate",
            "message": "refused a session of /rooms/{id}: max_sessions (full); retry after 2.3 s",
            "event.name": "closecodes.session.refused",
            "closecodes.gate.name": "max_sessions",
            "closecodes.gate.cause": "full",
            "closecodes.gate.usage": 1000,
            "closecodes.gate.limit": 1000,
            "closecodes.refusal.mode": "close",
            "closecodes.refusal.retry_after": 2.3,
            "websocket.close.code": 1013,
            "websocket.close.reason": "try again later; retry_after=2.3; cause=full",
            **session,
            "closecodes.refusal.suppressed": suppressed,
        }, 0
    ref = "".join(rng.choices("0123456789ABCDEFGHJKMNPQRSTVWXYZ", k=12))
    return {
        "level": "error",
        "logger": "asgi_closecodes.error",
        "message": f"KeyError in the WebSocket handler of /rooms/{{id}}; close code 1011; ref={ref}",
        "event.name": "closecodes.session.exception",
        "closecodes.error.id": ref,
        "closecodes.error.fingerprint": f"{rng.randrange(30):012x}",
        "closecodes.error.phase": "open",
        "websocket.close.code": 1011,
        "websocket.close.reason": f"internal error; ref={ref}",
        "websocket.close.sent": True,
        **session,
        "closecodes.error.suppressed": suppressed,
        "exception.type": "KeyError",
        "exception.message": "'x'",
        "exception.stacktrace": _TRACE,
    }, 1 + suppressed


def _peak(pid):
    """The KiB of memory that a process has had at most; 0 when it has ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(found[1]) if (found := re.search(r"VmHWM:\s+(\d+)", status)) else 0


def _reading(*command, needs=None):
    @contextmanager
    def subject(run):
        if needs and shutil.which(needs) is None:
            raise Unfit(f"{needs} is missing: apt-get install {needs}")
        file = run.folder / "reader.log"
        if not file.exists():
            with file.open("wb") as output:
                generate(output, run.size(2**30, 2**22))

        def turn():
            start = time.perf_counter()
            process = psutil.Popen([*command, file], stdout=subprocess.DEVNULL)
            most = 0
            while process.poll() is None:  # wait4 would count what this process was before it became another
                most = max(most, _peak(process.pid))
                time.sleep(0.02)
            assert process.returncode == 0
            return {S: time.perf_counter() - start, MIB: most / 1024}

        yield turn
        file.unlink(missing_ok=True)

    return subject


BENCHMARK.subject("jq")(_reading("jq", "-c", 'select(.level=="error")', needs="jq"))
BENCHMARK.subject("errors")(_reading(COMMAND, "logs", "errors"))
BENCHMARK.subject("closes")(_reading(COMMAND, "logs", "closes"))
