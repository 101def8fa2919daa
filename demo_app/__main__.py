"""Serve the demo: ``python -m demo_app [--server uvicorn|hypercorn|granian] [--host HOST] [--port PORT]``.

``--workers 2 --cluster`` runs two processes that share one limit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib.util
import logging
import signal
import socket
import sys

INSTALL = f"{sys.executable} -m pip install --editable '.[demo]'"

try:
    from asgi_closecodes import SettingsError

    from . import hosts
    from .app import DemoSettings, create_app
    from .cluster import one_limit
    from .sockets import Sockets
except ModuleNotFoundError as missing:  # in a clone without installed packages
    sys.exit(f"{(missing.name or '').partition('.')[0]} is not installed: {INSTALL}")


def _with_uvicorn(host: str, port: int) -> None:
    import uvicorn  # noqa: PLC0415 - only the chosen server has to be there

    # Without its own logging configuration, its records become JSON lines too.
    uvicorn.run(create_app(), host=host, port=port, log_config=None, access_log=False)


def _with_workers_of_uvicorn(workers: int, host: str, port: int) -> None:
    import uvicorn  # noqa: PLC0415

    app = "demo_app.app:create_app"
    uvicorn.run(app, factory=True, workers=workers, host=host, port=port, log_config=None, access_log=False)


def _with_hypercorn(host: str, port: int) -> None:
    import hypercorn.asyncio  # noqa: PLC0415
    import hypercorn.config  # noqa: PLC0415

    config = hypercorn.config.Config()
    config.bind = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    config.errorlog = logging.getLogger("hypercorn.error")
    sockets = Sockets(create_app())

    async def until_interrupted() -> None:
        interrupted = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupted.set)

        async def shutdown_trigger() -> None:
            await interrupted.wait()
            sockets.end()  # hypercorn waits for them: forever since Python 3.12

        await hypercorn.asyncio.serve(sockets, config, shutdown_trigger=shutdown_trigger)  # type: ignore[arg-type]

    asyncio.run(until_interrupted())


def _with_granian(host: str, port: int) -> None:
    import granian  # noqa: PLC0415
    import granian.constants  # noqa: PLC0415

    # Its worker process creates the application itself.
    logs = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "asgi_closecodes.logs.JsonFormatter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {
            "_granian": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
            "granian.access": {"handlers": [], "level": "WARNING", "propagate": False},
        },
    }
    granian.Granian(
        "demo_app.app:create_app",
        address=host,
        port=port,
        interface=granian.constants.Interfaces.ASGI,
        factory=True,
        log_dictconfig=logs,
    ).serve()


SERVERS = {"uvicorn": _with_uvicorn, "hypercorn": _with_hypercorn, "granian": _with_granian}
NEEDS = {"uvicorn": ("uvicorn", "websockets"), "hypercorn": ("hypercorn",), "granian": ("granian",)}


def main() -> int:
    """Serve until interrupted; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo_app", description=__doc__.partition(":")[0])
    parser.add_argument("--server", choices=SERVERS, default="uvicorn")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1, help="processes, with uvicorn")
    parser.add_argument("--cluster", action="store_true", help="one limit over all workers, on a Redis of its own")
    options = parser.parse_args()
    if options.workers < 1 or (options.workers > 1 and options.server != "uvicorn"):
        return _stopped(f"--workers {options.workers} is not possible with {options.server}: use uvicorn and 1 or more")

    for module in NEEDS[options.server]:
        if importlib.util.find_spec(module) is None:
            return _stopped(f"{module} is not installed: {INSTALL}")
    serve = SERVERS[options.server]
    if options.workers > 1:
        serve = functools.partial(_with_workers_of_uvicorn, options.workers)
    with contextlib.ExitStack() as stack:
        if options.cluster:
            try:
                url = stack.enter_context(one_limit())
            except OSError as error:
                return _stopped(f"the Redis of --cluster does not start: {error}")
        try:
            DemoSettings()
        except SettingsError as error:
            return _stopped(str(error))
        try:
            _try_to_bind(options.host, options.port)
        except OSError as error:
            problem = f"cannot listen on port {options.port} of {options.host} ({error})"
            return _stopped(f"{problem}: stop the program that uses it, or choose another with --port")
        if options.cluster:
            print(f"One limit over all workers: asgi-closecodes cluster status --redis-url {url}", flush=True)
        hosts.allow(options.host)
        print(
            f"The demo is on http://{hosts.netloc(options.host)}:{options.port}/ (served by {options.server})",
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            serve(options.host, options.port)
    return 0


def _try_to_bind(host: str, port: int) -> None:
    # First, for a clear message: servers print a stack trace or a log line. getaddrinfo wraps invalid ports.
    if not 0 <= port <= 65535:
        raise OSError("ports are 0 to 65535")
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        attempt.bind(address)


def _stopped(problem: str) -> int:
    print(problem, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
