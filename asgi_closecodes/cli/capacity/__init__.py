"""``asgi-closecodes capacity``: how many sessions a running server holds, and what to set for that."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl

import click

from asgi_closecodes.cli.commands import FOUND, INTERRUPTED, NOTHING_FOUND, UNUSABLE
from asgi_closecodes.cli.output import status, write_errors

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

try:
    import psutil
    from websockets.uri import WebSocketURI

    from .connection import Target
    from .measure import Plan, Search, Unusable
    from .options import authorities, duration_between, header, url
    from .process import Server
    from .report import report
except ModuleNotFoundError as error:
    if error.name not in {"psutil", "websockets"}:
        raise
    raise click.UsageError(f"{error.name} is missing; pip install 'asgi-closecodes[cli]'") from None


@click.command(
    epilog="Exit status: 0 there is something to set, 1 there is not, 2 it cannot be measured, 130 a signal."
)
@click.argument("url", type=url)
@click.option("--message", metavar="TEXT", help="What each session says; the next message is its answer. Else pings.")
@click.option(
    "--every", type=duration_between(0.01, 3600), default="1s", show_default=True, help="How often each says it."
)
@click.option(
    "--p99", type=duration_between(0.001, 60), default="250ms", show_default=True, help="How late answers may be."
)
@click.option(
    "--hold", type=duration_between(0.1, 3600), default="5s", show_default=True, help="How long each step is measured."
)
@click.option("--most", type=click.IntRange(min=1), metavar="COUNT", help="Sessions at most.")
@click.option("--header", "headers", type=header, multiple=True, metavar="'NAME: VALUE'", help="As 'Cookie: a=b'.")
@click.option("--pid", type=click.IntRange(min=1), help="The server's process, to see its memory; here, and yours.")
@click.option("--ca", type=authorities, metavar="FILE", help="Certificates to trust, in PEM, for wss://.")
def capacity(
    url: WebSocketURI,
    *,
    message: str | None,
    every: float,
    p99: float,
    hold: float,
    most: int | None,
    headers: tuple[tuple[str, str], ...],
    pid: int | None,
    ca: ssl.SSLContext | None,
) -> None:
    """Measure how many sessions a running server holds, and print what to set.

    It opens sessions in steps, with compression as browsers have it, until answers come late or sessions are refused.
    This overloads the server: use one that has no other users, and set no limits. Pings measure the server alone. With
    --message the handler works too: use a message that it answers to each session. Ctrl-C and SIGTERM print the
    results so far.
    """
    if ca is not None and not url.secure:
        raise click.UsageError("--ca is only for wss://; omit it, or use wss://")
    server = None if pid is None else _server(pid)
    tls = (ca or ssl.create_default_context()) if url.secure else None
    plan = Plan(p99, every, hold, most)
    try:
        with status() as tell:
            search = Search(Target(url, headers, message), tls, plan, server, tell)
            ended = _run(search)
    except Unusable as error:
        write_errors(str(error))
        raise click.exceptions.Exit(UNUSABLE) from None
    found = report(search.result, plan, knows_process=server is not None)
    raise click.exceptions.Exit(ended or (FOUND if found else NOTHING_FOUND))


def _server(pid: int) -> Server:
    try:
        return Server(pid)
    except psutil.NoSuchProcess:
        raise click.BadParameter(
            f"process {pid} does not exist here; give the server's", param_hint=["--pid"]
        ) from None
    except psutil.AccessDenied:
        raise click.BadParameter(
            f"process {pid} is another user's; run this command as that user", param_hint=["--pid"]
        ) from None


def _run(search: Search) -> int:
    _allow_many_files()

    async def run() -> None:
        before = signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # asyncio's, which cancels this
        try:
            await search.run()
        finally:
            signal.signal(signal.SIGTERM, before)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        return INTERRUPTED
    return FOUND


def _allow_many_files() -> None:
    """Raise this process's limit of open files to its hard limit."""
    if resource is not None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # the hard limit may be above the system's
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
