"""What a session costs on this machine: ``python -m tests.benchmarks.capacity URL --pid PID``.

It opens sockets to a running application, and reads the memory and the processor time of its process: the two
numbers from which limits follow (README, "Choosing limits").
"""

import argparse
import asyncio
import time

import psutil
import websockets


async def measure(url, pid, count):
    process = psutil.Process(pid)
    slots = asyncio.Semaphore(50)

    async def connect():
        async with slots:
            return await websockets.connect(url, proxy=None, open_timeout=60, ping_interval=None, compression=None)

    before = process.memory_info().rss
    processor = process.cpu_times()
    start = time.monotonic()
    sockets = await asyncio.gather(*(connect() for _ in range(count)))
    took = time.monotonic() - start
    used = process.cpu_times()
    busy = used.user + used.system - processor.user - processor.system
    memory = process.memory_info().rss - before
    print(f"{count} sessions open: {memory / count / 1024:.1f} KiB of memory each")
    print(f"{count / took:.0f} handshakes a second; one core of the server is busy at {count / busy:.0f} a second")
    for socket in sockets:
        socket.transport.abort()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, required=True, help="the server's process")
    parser.add_argument("--count", type=int, default=500, help="sockets to open")
    options = parser.parse_args()
    asyncio.run(measure(options.url, options.pid, options.count))


if __name__ == "__main__":
    main()
