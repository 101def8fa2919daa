"""How a sum is told: what was written, what was counted instead, and when."""

from __future__ import annotations

from asgi_closecodes.cli.output import between, iso, plural, stretch

from .aggregate import Tally, Timeline


def tally(kind: Tally) -> dict[str, object]:
    """Return a sum for machines."""
    return {
        "count": kind.count,
        "written": kind.written,
        "suppressed": kind.suppressed,
        "first": iso(kind.first),
        "last": iso(kind.last),
    }


def headline(what: str, total: Tally, timeline: Timeline) -> str:
    """Return a sum for people, and how wide the columns below it are."""
    told = plural(total.count, what)
    if total.suppressed:
        told += f" ({total.written} written, {total.suppressed} counted instead)"
    if timeline.first <= timeline.last:
        told += f", {between(timeline.first, timeline.last)}; a column is {stretch(timeline.width)}"
    return told
