"""What is generated from the code: parts of schema.json and the tables of settings, events and metrics in the READMEs.

``python -m tests.support.generated`` writes them; a test compares.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

from asgi_closecodes import events
from asgi_closecodes.logs.messages import LINES, SUMMARIES, SUPPRESSED, Line, Sampler
from asgi_closecodes.settings import Settings
from asgi_closecodes.telemetry.metrics import METRICS
from tests.support.every_event import EVENTS

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "asgi_closecodes/logs/schema.json"


def schema(before: dict[str, Any]) -> dict[str, Any]:
    """Return schema.json with the events as they are; what each key means stands there alone."""
    names = [(line.name, _first_sentence(kind)) for kind, line in LINES.items()]
    names += [(name, _summary(sampler)) for sampler, name in SUMMARIES.items()]
    needed = {line.name: _needed(kind, line) for kind, line in LINES.items()}
    needed |= {name: ["closecodes.suppressed.event", SUPPRESSED[sampler]] for sampler, name in SUMMARIES.items()}
    properties = dict(before["properties"])
    properties["event.name"] = {
        "description": "what happened",
        "oneOf": [{"const": name, "description": description} for name, description in names],
    }
    sampled = [line.name for line in LINES.values() if line.sampler is not None]
    properties["closecodes.suppressed.event"] = {**properties["closecodes.suppressed.event"], "enum": sampled}
    conditions = [
        {
            "if": {"properties": {"event.name": {"const": name}}, "required": ["event.name"]},
            "then": {"required": keys},
        }
        for name, keys in needed.items()
        if keys
    ]
    return {**before, "properties": properties, "allOf": conditions}


def _needed(kind: Any, line: Line) -> list[str]:
    keys = list(line.keys)
    if line.sampler is not None:
        keys.append(SUPPRESSED[line.sampler])
    if any(field.name == "exception" and "None" not in field.type for field in dataclasses.fields(kind)):
        keys += ["exception.type", "exception.message", "exception.stacktrace"]
    return keys


def _summary(sampler: Sampler) -> str:
    return f"summary of suppressed records, counted in {SUPPRESSED[sampler]}"


def _first_sentence(kind: type[events.Event]) -> str:
    text = " ".join((kind.__doc__ or "").split()).replace("``", "").removesuffix(".")
    return re.split(r"[.;] ", text)[0]


def table_of_settings() -> list[str]:
    """Return the rows of the table of settings."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "none" if field.default == frozenset() else field.default
        rows.append(f"| `{name}` | `{default}` | {field.description} |")
    return rows


def table_of_events() -> list[str]:
    """Return the rows of the table of events."""
    rows = ["| logger | `event.name`, and what happened | level |", "|---|---|---|"]
    by_logger = sorted(LINES.items(), key=lambda item: ("error", "gate", "session", "config").index(_logger(item[1])))
    last = None
    for kind, line in by_logger:
        logger = _logger(line)
        name = "" if logger == last else f"`asgi_closecodes.{logger}`"
        rows.append(f"| {name} | `{line.name}`: {_first_sentence(kind)} | {_levels(kind, line)} |")
        last = logger
    rows += [f"| as theirs | `{name}`: {_summary(sampler)} | as theirs |" for sampler, name in SUMMARIES.items()]
    return rows


def _logger(line: Line) -> str:
    return line.logger.name.rpartition(".")[2]


def _levels(kind: type[events.Event], line: Line) -> str:
    example: Any
    [example] = [event for event in EVENTS if type(event) is kind]
    names = [logging.getLevelName(line.level_of(example))]
    if hasattr(example, "is_overload"):
        wanted = logging.getLevelName(line.level_of(dataclasses.replace(example, is_overload=False)))
        names.append(f"{wanted} for one client's own limit and a drain")
    return ", ".join(names)


def table_of_metrics() -> list[str]:
    """Return the rows of the table of metrics."""
    rows = ["| metric | what it is | labels |", "|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind}: {metric.description} | {labels} |")
    return rows


TABLES = {
    "settings": (ROOT / "asgi_closecodes/settings/README.md", table_of_settings),
    "events": (ROOT / "asgi_closecodes/logs/README.md", table_of_events),
    "metrics": (ROOT / "asgi_closecodes/telemetry/README.md", table_of_metrics),
}


def page(name: str) -> str:
    """Return the page that has the table ``name``, with that table as it should be."""
    path, table = TABLES[name]
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, rest = path.read_text().split(start)
    return head + start + "\n".join(table()) + "\n" + end + rest.split(end)[1]


def as_json(value: object) -> str:
    """Return the text of schema.json."""
    return json.dumps(value, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(as_json(schema(json.loads(SCHEMA.read_text()))))
    for name, (path, _) in TABLES.items():
        path.write_text(page(name))
