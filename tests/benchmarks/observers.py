"""What metrics add to one session, and to a second in which nothing happens: ``python -m tests.benchmarks.observers``.

In one process and without a server; the observers take turns, and the median of the turns counts.
"""

import asyncio
import gc
import statistics
import time

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.telemetry.opentelemetry import OpenTelemetryObserver
from asgi_closecodes.telemetry.prometheus import PrometheusObserver

SESSIONS = 1_000
TURNS = 21
SCOPE = {"type": "websocket", "path": "/", "headers": [], "client": ("192.0.2.1", 5000)}


def subjects():
    settings = Settings(max_sessions=10**6, max_loop_lag=60, max_memory=1.0, max_cpu=1.0)
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    return {
        "no observer": Guard(settings),
        "Prometheus": Guard(settings, observers=[PrometheusObserver(CollectorRegistry())]),
        "OpenTelemetry": Guard(settings, observers=[OpenTelemetryObserver(provider)]),
    }


async def handler(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await receive()


async def visit(app):
    says = iter([{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1001}])

    async def receive():
        return next(says)

    async def send(message):
        pass

    await app(SCOPE, receive, send)


async def microseconds(function, count):
    start = time.perf_counter_ns()
    for _ in range(count):
        await function()
    return (time.perf_counter_ns() - start) / count / 1000


async def main():
    guards = subjects()
    sessions, looks = {name: [] for name in guards}, {name: [] for name in guards}
    gc.disable()
    for _ in range(TURNS):
        for name, guard in guards.items():
            app = CloseCodeMiddleware(handler, guard)
            sessions[name].append(await microseconds(lambda app=app: visit(app), SESSIONS))

            async def look(guard=guard):
                guard._ticker.tick()

            looks[name].append(await microseconds(look, SESSIONS))
    for name in guards:
        low, middle, high = statistics.quantiles(sessions[name], n=4)
        look = statistics.median(looks[name])
        print(f"{name:14} {middle:6.1f} us a session, quartiles {low:.1f} to {high:.1f}; {look:5.1f} us a look (10/s)")


if __name__ == "__main__":
    import logging

    logging.disable()
    asyncio.run(main())
