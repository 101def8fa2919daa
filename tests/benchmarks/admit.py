"""What it costs to admit a session and to give its place back: ``python -m tests.benchmarks.admit``.

In one process and without a server; the sets of gates take turns, and the median of the turns counts.
"""

import asyncio
import gc
import statistics
import time

from asgi_closecodes import Guard, Settings
from asgi_closecodes.gates import AllOf, MaxSessions, MaxSessionsPerKey
from asgi_closecodes.session import Session

SESSIONS = 5_000
TURNS = 21


def subjects():
    limits = {"max_sessions": 10**6, "max_sessions_per_client": 10**6, "max_handshakes_in_progress": 10**6}
    return {
        "no gate": AllOf(),
        "MaxSessions": AllOf(MaxSessions(10**6)),
        "MaxSessionsPerKey": AllOf(MaxSessionsPerKey(10**6)),
        "no limit set": Guard(Settings()).gate,
        "three limits set": Guard(Settings(**limits)).gate,
        "all limits set": Guard(
            Settings(**limits, handshakes_per_second=10**9, max_loop_lag=60, max_memory=1.0, max_cpu=1.0)
        ).gate,
    }


async def measure(gate, sessions):
    start = time.perf_counter_ns()
    for session in sessions:
        async with gate.admit(session):
            pass
    return (time.perf_counter_ns() - start) / len(sessions) / 1000


async def main():
    scope = {"type": "websocket", "path": "/", "client": ("192.0.2.1", 5000)}
    results = {name: [] for name in subjects()}
    gc.disable()
    gates = subjects()
    for _ in range(TURNS):
        for name, gate in gates.items():
            guard = Guard(Settings())
            sessions = [Session(guard, scope, None, None) for _ in range(SESSIONS)]
            results[name].append(await measure(gate, sessions))
    for name, times in results.items():
        low, middle, high = statistics.quantiles(times, n=4)
        print(f"{name:18} {middle:6.2f} us a session, quartiles {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    import logging

    logging.disable()
    asyncio.run(main())
