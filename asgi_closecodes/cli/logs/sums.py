"""Headline of a sum."""

from __future__ import annotations

from asgi_closecodes.cli.output import between, format_duration, plural

from .aggregate import Aggregate, Timeline


def headline(what: str, total: Aggregate, timeline: Timeline) -> str:
    """Return the count, the period and the width of the columns below, as text."""
    text = plural(total.count, what)
    if total.suppressed:
        text += f" ({total.written} written, {total.suppressed} suppressed)"
    if timeline.first <= timeline.last:
        text += f", {between(timeline.first, timeline.last)}; a column is {format_duration(timeline.width)}"
    return text
