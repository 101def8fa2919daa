"""``asgi-closecodes logs closes``: closes by code, refusals by cause."""

from __future__ import annotations

import click

from asgi_closecodes.cli.output import bars, render, styled, table, write
from asgi_closecodes.codes import CloseCode

from .aggregate import Closes, Code, total
from .reading import file_arguments, finish, in_period, open_log, period_options, reading, records_between
from .record import dumps
from .sums import headline

_MEANINGS = {int(code): code.meaning for code in CloseCode}
_OUTCOMES = {
    "refused": "refused",
    "shadow": "would have been refused or closed (shadow)",
    "shed": "shed or drained",
}
_ONLY_PROBLEMS = "sessions without problems: set asgi_closecodes.session to DEBUG"


@click.command()
@file_arguments
@period_options
def closes(files: tuple[str, ...], *, as_json: bool, since: float | None, until: float | None) -> None:
    """Count closes by code, refusals by cause.

    Counts include suppressed records. Sessions without problems are included if the logger asgi_closecodes.session is
    at level DEBUG.
    """
    found = Closes()
    log = open_log(files)
    with reading(log):
        for record in records_between(log, since, until, *Closes.NEEDLES):
            found.add(record)
    if as_json:
        write(dumps(_described(found)))
    elif found.codes or found.refusals:
        _print(found)
    finish(
        log,
        found=bool(found.codes or found.refusals),
        nothing=f"no closes and no refusals{in_period(since, until)}",
        hints=[f"this log has no {_ONLY_PROBLEMS}"] if log.has_json else (),
    )


def _described(found: Closes) -> dict[str, object]:
    counts = found.timeline.counts
    return {
        **total(found.codes.values()).as_json(),
        "column_seconds": found.timeline.width,
        "closes": [
            {
                "code": code,
                **kind.as_json(),
                "by_client": found.by_client.get(code, 0),
                "unsent": found.unsent.get(code, 0),
                "over_time": counts(kind.over_time),
            }
            for code, kind in found.codes.items()
        ],
        "refusals": [
            {
                "gate": gate or None,
                "cause": cause,
                "outcome": outcome,
                **kind.as_json(),
                "over_time": counts(kind.over_time),
            }
            for (gate, cause, outcome), kind in found.refusals.items()
        ],
    }


def _print(found: Closes) -> None:
    counts = found.timeline.counts
    write(headline("close", total(found.codes.values()), found.timeline))
    if found.codes:
        codes = sorted(found.codes.items(), key=lambda item: str(item[0]))
        rows = [
            (
                str(code),
                str(kind.count),
                str(found.by_client.get(code, "-")),
                bars(counts(kind.over_time)),
                _meaning(code, found.unsent.get(code, 0)),
            )
            for code, kind in codes
        ]
        write("")
        render(table("code", ">closes", ">by clients", "over time", "", rows=rows))
    if found.refusals:
        refusals = sorted(found.refusals.items(), key=lambda item: -item[1].count)
        refused = [
            (cause, gate or "-", str(kind.count), bars(counts(kind.over_time)), _OUTCOMES[outcome])
            for (gate, cause, outcome), kind in refusals
        ]
        write("")
        render(table("cause", "gate", ">sessions", "over time", "", rows=refused))
    if not found.is_of_all_sessions:
        write("", styled("2", f"This log has no {_ONLY_PROBLEMS}."))


def _meaning(code: Code, unsent: int) -> str:
    if isinstance(code, int):
        registered = _MEANINGS.get(code - 3000)
        of_the_application = f"of the application, or: {registered}" if registered else "of the application"
        meaning = _MEANINGS.get(code, of_the_application)
    else:
        meaning = {"http": "answered by an HTTP response", "unknown": "not reported by the server, or suppressed"}[code]
    return f"{meaning}; {unsent} could not be sent" if unsent else meaning
