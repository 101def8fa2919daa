"""``asgi-closecodes logs``: from what a client saw to the stack trace, and what a log adds up to."""

from __future__ import annotations

from pathlib import Path

import click

from asgi_closecodes.cli.output import write

from .closes import closes
from .errors import errors
from .show import show
from .tail import tail

LNAV_FORMAT = Path(__file__).with_name("closecodes.lnav.json")


@click.group(epilog="Exit status: 0 found, 1 nothing found, 2 a wrong option or a file that cannot be read.")
def logs() -> None:
    """Read the log, as written by this library's formatter, python-json-logger, structlog or ecs-logging.

    FILE is a path, a glob, or "-" or nothing for standard input; gzip is unpacked, and a prefix in front of each line,
    as of docker compose, is passed over. The log may be written to meanwhile.
    """


@click.command()
def lnav_format() -> None:
    """Print where a format file for lnav is.

    lnav is a log file navigator, https://lnav.org. This installs the file:
    lnav -i "$(asgi-closecodes logs lnav-format)"
    """
    write(str(LNAV_FORMAT))


for command in (show, errors, closes, tail, lnav_format):
    logs.add_command(command)
