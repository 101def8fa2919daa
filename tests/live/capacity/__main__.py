"""``python -m tests.live.capacity [APP ...]``: see whether the command finds what a sweep by hand finds here.

The sweep is another client (picows), which starts the server anew for each number of sessions, and looks at it in
steps of a twelfth between the last one that was held and the first that was not. It takes some minutes an application,
needs a machine that does nothing else, and is no part of CI.
"""

import argparse
import asyncio
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
    for task in tasks:
        task.cancel()
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
    held = int(re.search(r"held (\d+) session", done.stdout)[1])
    rows = re.findall(r"^ *(\d+) +\S+ +([\d.]+) KiB +>?(\d+) *$", done.stdout, re.MULTILINE)
    return (held, float(rows[-1][1]) * 1024, float(rows[-1][2])) if rows else (held, 0, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("app", nargs="*", default=["echo", "work", "heavy"])
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two messages of a session")
    parser.add_argument("--hold", type=float, default=5.0, help="seconds for which each number is looked at")
    options = parser.parse_args()
    is_near = True
    for name in options.app:
        print(name)
        app = f"tests.live.capacity.apps:{name}"
        found, by_hand = command(app, options.every, options.hold), sweep(app, options.every, options.hold)
        for what, one, other in zip(
            ("sessions", "bytes each", "handshakes/s (by hand nobody talks)"), found, by_hand, strict=True
        ):
            print(f"  {what}: {one:.0f}, by hand {other:.0f}, ratio {one / max(other, 1):.2f}")
        is_near &= abs(found[0] / max(by_hand[0], 1) - 1) <= 0.25
    return 0 if is_near else 1


if __name__ == "__main__":
    sys.exit(main())
