"""How a sum is told: what was written, what was counted instead, and when."""

from __future__ import annotations

from asgi_closecodes.cli.output import between, format_duration, plural

from .aggregate import Aggregate, Timeline


def headline(what: str, total: Aggregate, timeline: Timeline) -> str:
    """Return a sum for people, and how wide the columns below it are."""
    told = plural(total.count, what)
    if total.suppressed:
        told += f" ({total.written} written, {total.suppressed} counted instead)"
    if timeline.first <= timeline.last:
        told += f", {between(timeline.first, timeline.last)}; a column is {format_duration(timeline.width)}"
    return told
