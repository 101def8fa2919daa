"""Real server in a thread, on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from starlette.types import ASGIApp

try:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect
except ImportError as error:
    raise ImportError(
        f"asgi_closecodes.testing needs websockets: pip install 'asgi-closecodes[testing]' ({error})"
    ) from error

from .client import TIMEOUT_S, Client
from .records import LOGGER, ErrorRecords

STOP_TIMEOUT_S = 3
"""Seconds that handlers have at the end of the test before the server cancels them."""

JOIN_TIMEOUT_S = 30.0
"""Seconds to wait for a server to stop."""

_Stop: TypeAlias = Callable[[], object]


class Server:
    """Application on a running server."""

    def __init__(self, address: tuple[str, int], records: ErrorRecords) -> None:
        self.host, self.port = address
        self._records = records
        self._clients = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """Address for your own clients, such as ``ws://127.0.0.1:40123``; HTTP has the same port."""
        return f"ws://{self.host}:{self.port}"

    def connect(
        self, path: str = "/", *, subprotocols: Sequence[str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Client:
        """Open a session, which is closed at the end of the test. If it is refused, ``wait_closed()`` returns that.

        :param path: with the query, as ``/ws?room=5``.
        """
        plain = socket.create_connection((self.host, self.port), TIMEOUT_S)
        try:
            opening = connect(
                f"{self.url}{path}",
                sock=plain,  # so that no proxy is used
                subprotocols=subprotocols,  # type: ignore[arg-type]  # a NewType of str
                additional_headers=headers,
                open_timeout=TIMEOUT_S,
                close_timeout=STOP_TIMEOUT_S,
                max_size=None,
            )
            return Client(path, self._clients.enter_context(opening), self._records)
        except InvalidStatus as refused:
            return Client(path, refused, self._records)


@contextlib.contextmanager
def serve(app: ASGIApp, server: Literal["uvicorn", "hypercorn"] = "uvicorn", **options: Any) -> Iterator[Server]:
    """Serve ``app`` in a thread until the block ends, with its lifespan.

    :param server: the server to take.
    :param options: of ``uvicorn.Config``, or attributes of ``hypercorn.Config``.
    :raises RuntimeError: if the application does not start.
    """
    if server not in _STARTERS:
        raise ValueError(f"server={server!r}: use {' or '.join(_STARTERS)}")
    records = ErrorRecords()
    logger = logging.getLogger(LOGGER)
    logger.addHandler(records)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, _running(_STARTERS[server], app, listener, options):
            running = Server(listener.getsockname()[:2], records)
            with running._clients:  # noqa: SLF001 - its own
                yield running
    finally:
        logger.removeHandler(records)


@contextlib.contextmanager
def _running(
    start: Callable[..., tuple[Callable[[], object], _Stop]],
    app: ASGIApp,
    listener: socket.socket,
    options: dict[str, Any],
) -> Iterator[None]:
    decided = threading.Event()  # set when it has started or failed to
    has_started: list[bool] = []
    failures: list[BaseException] = []

    def started() -> None:
        has_started.append(True)
        decided.set()

    run, stop = start(app, listener, started, options)

    def run_and_tell() -> None:
        try:
            run()
        except BaseException as error:  # SystemExit too, which uvicorn raises
            failures.append(error)
        finally:
            decided.set()

    thread = threading.Thread(target=run_and_tell, name="asgi_closecodes.testing", daemon=True)
    thread.start()
    decided.wait()
    try:
        if not has_started:
            raise RuntimeError("the application did not start; the log has the reason") from next(iter(failures), None)
        yield
    finally:
        stop()
        thread.join(JOIN_TIMEOUT_S)
    if thread.is_alive():
        raise RuntimeError("the server does not stop: a handler blocks its event loop, or swallows its cancellation")


def _uvicorn(
    app: ASGIApp, listener: socket.socket, started: Callable[[], None], options: dict[str, Any]
) -> tuple[Callable[[], object], _Stop]:
    import uvicorn  # noqa: PLC0415 - the other server may be the only one

    class Notifying(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    # The default of older versions uses deprecated parts of websockets, whose warnings fail many test runs.
    defaults = {"log_config": None, "timeout_graceful_shutdown": STOP_TIMEOUT_S, "ws": "websockets-sansio"}
    server = Notifying(uvicorn.Config(app, **{**defaults, **options}))

    def stop() -> None:
        server.should_exit = True

    return lambda: server.run([listener]), stop


def _hypercorn(
    app: ASGIApp, listener: socket.socket, started: Callable[[], None], options: dict[str, Any]
) -> tuple[Callable[[], object], _Stop]:
    from hypercorn.asyncio import serve as run_server  # noqa: PLC0415 - as above
    from hypercorn.config import Config  # noqa: PLC0415

    config = Config.from_mapping(
        {"errorlog": logging.getLogger("hypercorn.error"), "graceful_timeout": STOP_TIMEOUT_S, **options}
    )
    config.bind = [f"fd://{os.dup(listener.fileno())}"]  # hypercorn closes the socket that it is given
    wake: list[Callable[[], object]] = []

    async def until_stopped() -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        wake.append(lambda: loop.call_soon_threadsafe(stopped.set))
        started()
        await stopped.wait()

    def stop() -> None:
        for call in wake:
            with contextlib.suppress(RuntimeError):  # the server's event loop has ended
                call()

    return lambda: asyncio.run(run_server(app, config, shutdown_trigger=until_stopped)), stop  # type: ignore[arg-type]


_STARTERS = {"uvicorn": _uvicorn, "hypercorn": _hypercorn}
