"""``asgi-closecodes cluster``: state of a cluster limit, read from its Redis."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from asgi_closecodes.gates.cluster import RedisStore, State


@click.group()
def cluster() -> None:
    """Inspect cluster limits."""


@cluster.command()
@click.option(
    "--redis-url", envvar="CLOSECODES_REDIS_URL", required=True, help="The setting redis_url; or CLOSECODES_REDIS_URL."
)
@click.option(
    "--name", envvar="CLOSECODES_CLUSTER_NAME", default="default", show_default=True, help="The setting cluster_name."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(redis_url: str, name: str, as_json: bool) -> None:
    """Show the workers of a limit: permits used and granted, and last sync."""
    try:
        store = RedisStore(redis_url, name, timeout=5.0)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        state = asyncio.run(_state_of(store))
    except Exception as error:
        raise click.ClickException(f"Redis is unreachable: {store.describe_error(error)}") from None
    if as_json:
        click.echo(json.dumps(asdict(state)))
    elif state.workers:
        _show(state, name)
    else:
        click.echo(f"no worker has permits of cluster limit {name}")


async def _state_of(store: RedisStore) -> State:
    try:
        return await store.state()
    finally:
        await store.close()


def _show(state: State, name: str) -> None:
    table = Table(title=f"cluster limit {name}", show_footer=True, title_justify="left")
    table.add_column("worker", footer=f"{len(state.workers)} workers, limit {state.limit}", overflow="fold")
    table.add_column("used", footer=str(state.used), justify="right")
    table.add_column("granted", footer=str(state.alloc), justify="right")
    table.add_column("last sync", justify="right")
    table.add_column("free in", justify="right")
    for worker in sorted(state.workers, key=lambda worker: -worker.grant):
        age, ends = f"{worker.age:.1f} s ago", f"{worker.expires_in:.1f} s" if worker.expires_in else "overdue"
        table.add_row(worker.id, str(worker.used), str(worker.grant), age, ends)
    console = Console()
    console.print(table)
    if state.learning:
        console.print(f"relearning: Redis has lost its data and grants nothing more for {state.learning:.1f} s")
