"""The group of all commands, each of which is imported when it is asked for, and how commands end."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

COMMANDS = {
    "capacity": "how many sessions a running server holds, and what to set",
    "cluster": "who holds what of a limit that many processes share",
    "logs": "errors, closes and single records out of log files",
}
"""For each module of this package that has a command of its name: what it is about."""

FOUND = 0
NOTHING_FOUND = 1
UNUSABLE = 2
"""A usage error, or a file that cannot be read. click ends with the same for wrong options."""
INTERRUPTED = 130


class _Commands(click.Group):
    """Commands that are imported late: ``--help`` and completion are quick, and an extra is needed only for its own."""

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
        except BrokenPipeError:  # whoever read the output has seen enough, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would flush, and complain
            ctx.exit(FOUND)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="asgi-closecodes")
def commands() -> None:
    """Close codes for ASGI WebSockets: what the server closed, refused and logged."""
