"""``python -m tests.live.capacity [APP ...]``: see whether the command finds what a sweep by hand finds here.

The sweep is another client (picows), which starts the server anew for each number of sessions, and looks at it in
steps of a twelfth between the last one that was held and the first that was not. It takes two to five minutes an
application, and is no part of CI. A figure is refused, with the reason, where it says nothing: the machine did
something else as well, the command ended before the server did, or a client was slower than the server.
"""

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import psutil
import uvloop
from picows import WSListener, WSMsgType, ws_connect

from tests.support.servers import serve

P99 = 0.25
NEAR = 0.25
"""Share by which the two may differ."""

ALLOWED_CORES = 0.25
"""Cores that other processes may take meanwhile."""

BUSY = 0.9
"""Share of a core from which on a client is too slow."""

MESSAGE = '{"type":"message","body":"a line of chat, of usual length"}'
OFFER = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]


def packed():
    """Return the message as it is sent where permessage-deflate was agreed on."""
    deflate = zlib.compressobj(wbits=-9)
    return (deflate.compress(MESSAGE.encode()) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


class Client(WSListener):
    def __init__(self, latencies):
        self.latencies = latencies
        self.asked = None

    def on_ws_connected(self, transport):
        self.transport = transport

    def on_ws_frame(self, transport, frame):
        if self.asked is not None and frame.msg_type is WSMsgType.TEXT:
            self.latencies.append(time.perf_counter() - self.asked)
            self.asked = None

    async def talk(self, payload, every):
        await asyncio.sleep(random.uniform(0, every))
        while True:
            due = time.perf_counter() + every
            if self.asked is None:
                self.asked = time.perf_counter()
                self.transport.send(WSMsgType.TEXT, payload, rsv1=True)
            await asyncio.sleep(max(due - time.perf_counter(), 0))


class Refused(Exception):
    """A figure says nothing; the text says why."""


class Meanwhile:
    """How much other processes do, until it is asked; by then those that were started have ended."""

    def __init__(self):
        self._began = self._now()

    @staticmethod
    def _now():
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)
        return time.monotonic(), busy - sum(os.times()[:4])

    def check(self):
        """Do nothing.

        :raises Refused: if it was too much.
        """
        (start, before), (end, after) = self._began, self._now()
        if (cores := (after - before) / (end - start)) > ALLOWED_CORES:
            raise Refused(f"other processes took {cores:.2f} cores meanwhile, and {ALLOWED_CORES} are allowed")


async def look(url, count, every, hold, process):
    """Return the p99, the memory a session, and the handshakes a second."""
    latencies, payload = [], packed()
    base = process.memory_info().rss
    start = time.perf_counter()
    wanted = iter(range(count))
    clients = []

    async def open_some():
        for _ in wanted:
            _, client = await ws_connect(lambda: Client(latencies), url, extra_headers=OFFER)
            clients.append(client)

    await asyncio.gather(*(open_some() for _ in range(50)))
    rate = count / (time.perf_counter() - start)
    tasks = [asyncio.create_task(client.talk(payload, every)) for client in clients]
    await asyncio.sleep(every + 1)
    spent, began = time.process_time(), time.perf_counter()
    for _ in range(2):  # once more, as the command does: something else may have been busy
        latencies.clear()
        await asyncio.sleep(hold)
        now = time.perf_counter()
        waits = [now - client.asked for client in clients if client.asked is not None]
        latencies += [wait for wait in waits if wait > P99]
        p99 = sorted(latencies)[int(len(latencies) * 0.99)] if latencies else hold
        if p99 <= P99:
            break
    memory = (process.memory_info().rss - base) / count
    is_busy = (time.process_time() - spent) / (time.perf_counter() - began) > BUSY
    for task in tasks:
        task.cancel()
    if is_busy and p99 > P99:
        raise Refused(f"with {count} sessions the client by hand was at its own limit, and not only the server")
    return p99, memory, rate


def looked(app, count, every, hold):
    with tempfile.TemporaryDirectory() as folder, serve("uvicorn-sansio", app, Path(folder)) as server:
        process = psutil.Process(server.process.pid)
        p99, memory, rate = uvloop.run(look(server.url, count, every, hold, process))
    print(f"  by hand {count:6}: p99 {p99 * 1000:7.1f} ms, {memory / 1024:6.1f} KiB each, {rate:5.0f} handshakes/s")
    return p99, memory, rate


def sweep(app, every, hold):
    """Return the most sessions that were held, with the memory and the handshakes of that."""
    low, count = (0, 0, 0), 10
    while True:
        p99, *rest = looked(app, count, every, hold)
        if p99 > P99:
            break
        low, count = (count, *rest), count * 2
    for part in range(1, 12):
        tried = int(count / 2 + count / 2 * part / 12)
        p99, *rest = looked(app, tried, every, hold)
        if p99 > P99:
            break
        low = (tried, *rest)
    return low


def command(app, every, hold):
    with tempfile.TemporaryDirectory() as folder, serve("uvicorn-sansio", app, Path(folder)) as server:
        words = [
            "capacity",
            server.url,
            "--message",
            MESSAGE,
            "--pid",
            server.process.pid,
            "--every",
            f"{every:g}s",
            "--hold",
            f"{hold:g}s",
        ]
        code = "from asgi_closecodes.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    print("  " + done.stdout.replace("\n", "\n  ") + done.stderr)
    held = re.search(r"held (\d+) session", done.stdout)
    if done.returncode or held is None:
        raise Refused(f"the command ended with status {done.returncode} and without a figure, see above")
    if other := re.search(r"That is (a limit|--most).*|The server may hold more.*", done.stdout):
        raise Refused(f"the command did not find the server's limit: {other[0]}")
    rows = re.findall(r"^ *(\d+) +\S+ +([\d.]+) KiB +>?(\d+) *$", done.stdout, re.MULTILINE)
    return (int(held[1]), float(rows[-1][1]) * 1024, float(rows[-1][2])) if rows else (int(held[1]), 0, 0)


def compared(name, every, hold):
    """Say what both find; return whether they are near.

    :raises Refused: where that says nothing.
    """
    app = f"tests.live.capacity.apps:{name}"
    meanwhile = Meanwhile()
    found, by_hand = command(app, every, hold), sweep(app, every, hold)
    for what, one, other in zip(
        ("sessions", "bytes each", "handshakes/s (by hand nobody talks)"), found, by_hand, strict=True
    ):
        print(f"  {what}: {one:.0f}, by hand {other:.0f}, ratio {one / max(other, 1):.2f}")
    meanwhile.check()
    return abs(found[0] / max(by_hand[0], 1) - 1) <= NEAR


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("app", nargs="*", default=["echo", "work", "heavy"])
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two messages of a session")
    parser.add_argument("--hold", type=float, default=5.0, help="seconds for which each number is looked at")
    options = parser.parse_args()
    if (load := os.getloadavg()[0]) > ALLOWED_CORES:
        print(f"warning: this machine is busy (load {load:.1f}): figures will be refused", file=sys.stderr)
    verdicts = {}
    for name in options.app:
        print(name, flush=True)
        began = time.monotonic()
        try:
            verdicts[name] = "near" if compared(name, options.every, options.hold) else f"not within {NEAR:.0%}"
        except Refused as reason:
            verdicts[name] = f"refused: {reason}"
        print(f"  {verdicts[name]} ({time.monotonic() - began:.0f} s)", flush=True)
    print(*(f"{name}: {verdict}" for name, verdict in verdicts.items()), sep="\n")
    return 0 if {*verdicts.values()} == {"near"} else 1


if __name__ == "__main__":
    sys.exit(main())
