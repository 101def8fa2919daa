"""``asgi-closecodes logs errors`` beside ``jq`` on one file: ``python -m tests.benchmarks.reader [--size 1GiB]``.

It generates a log as a busy service writes it (mostly access and application lines, refusals, one error in a hundred),
and lets both read it in turns. Printed are the times, their ratio turn by turn, and the most memory that each used.
"""

import argparse
import datetime as dt
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = Path(sys.executable).with_name("asgi-closecodes")
UNITS = {"MiB": 2**20, "GiB": 2**30}

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
            "message": "refused a session of /rooms/{id}: MaxSessions (full); retry after 2.3 s",
            "event.name": "closecodes.session.refused",
            "closecodes.gate.name": "MaxSessions",
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


def run(command):
    """Return the seconds that ``command`` took, the most memory it used in MiB, and what it printed."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return took, usage.ru_maxrss / 1024, output.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="1GiB", help="of the file: 100MiB, 1GiB")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    size = int(options.size[:-3]) * UNITS[options.size[-3:]]
    with tempfile.NamedTemporaryFile(suffix=".log") as file:
        errors = generate(file, size)
        file.flush()
        commands = {
            "jq": ["jq", "-c", 'select(.level=="error")', file.name],
            "errors": [COMMAND, "logs", "errors", "--json", file.name],
            "closes": [COMMAND, "logs", "closes", "--json", file.name],
            "show": [COMMAND, "logs", "show", "D216BE3DZX4Y", "--json", file.name],
        }
        turns = [{name: run(command) for name, command in commands.items()} for _ in range(options.turns)]
        counted = json.loads(turns[0]["errors"][2])["count"]
        print(f"{options.size}, {errors} errors in it, {counted} found")
        for name in commands:
            took = statistics.median(turn[name][0] for turn in turns)
            ratio = statistics.median(turn["jq"][0] / turn[name][0] for turn in turns)
            memory = max(turn[name][1] for turn in turns)
            print(f"{name:<7} {took:7.2f} s  {ratio:5.1f} times as fast as jq  at most {memory:4.0f} MiB")
    return counted != errors


if __name__ == "__main__":
    sys.exit(main())
