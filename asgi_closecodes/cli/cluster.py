"""``asgi-closecodes cluster``: who holds what of a cluster limit, read from its Redis."""

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
    """Look at the limits that many processes share."""


@cluster.command()
@click.option(
    "--redis-url", envvar="CLOSECODES_REDIS_URL", required=True, help="As in the setting; or CLOSECODES_REDIS_URL."
)
@click.option("--name", envvar="CLOSECODES_CLUSTER_NAME", default="default", show_default=True, help="cluster_name")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(redis_url: str, name: str, as_json: bool) -> None:
    """Show the workers of a limit, what each holds and uses, and when each was heard of last."""
    try:
        store = RedisStore(redis_url, name, timeout=5.0)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        state = asyncio.run(_state_of(store))
    except Exception as error:
        raise click.ClickException(f"the Redis cannot be asked: {store.describe_error(error)}") from None
    if as_json:
        click.echo(json.dumps(asdict(state)))
    elif state.workers:
        _show(state, name)
    else:
        click.echo(f"nobody holds anything of the cluster limit {name}")


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
        console.print(f"learning: nobody gets more for {state.learning:.1f} s, since the Redis lost what it knew")
