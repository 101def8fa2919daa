"""``asgi-closecodes logs``: find the stack trace of an error, and sum up a log."""

from __future__ import annotations

from pathlib import Path

import click

from asgi_closecodes.cli.output import write

from .closes import closes
from .errors import errors
from .show import show
from .stalls import stalls
from .tail import tail

LNAV_FORMAT = Path(__file__).with_name("closecodes.lnav.json")


@click.group(epilog="Exit status: 0 found, 1 nothing found, 2 a wrong option or a file that cannot be read.")
def logs() -> None:
    """Read JSON logs of this library's formatter, python-json-logger, structlog or ecs-logging.

    FILE is a path or a glob; "-" or nothing is standard input. gzip is unpacked. Line prefixes, as of docker compose,
    are skipped. The log may grow meanwhile.
    """


@click.command()
def lnav_format() -> None:
    """Print the path of a format file for lnav.

    lnav is a log file navigator, https://lnav.org. This installs the file:
    lnav -i "$(asgi-closecodes logs lnav-format)"
    """
    write(str(LNAV_FORMAT))


for command in (show, errors, stalls, closes, tail, lnav_format):
    logs.add_command(command)
