"""Group of all commands, imported on demand, and exit statuses."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

COMMANDS = {
    "capacity": "measure how many sessions a running server holds",
    "cluster": "show the state of cluster limits",
    "logs": "find errors, closes and records in log files",
}
"""Help text by command; each is a module of this package."""

FOUND = 0
NOTHING_FOUND = 1
UNUSABLE = 2
"""Usage error or unreadable file; click exits with the same status for wrong options."""
INTERRUPTED = 130


class _Commands(click.Group):
    """Import commands on demand: ``--help`` and completion stay fast, and each extra is needed only by its command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f".{cmd_name}", __package__), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:  # the reader stopped early, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails
            ctx.exit(FOUND)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="asgi-closecodes")
def commands() -> None:
    """Inspect close codes, refusals and errors of ASGI WebSockets."""
