"""What has to hold when all peers have gone: nothing is left, and all sums are exact."""

import json
import re
from collections import Counter

from asgi_closecodes import Close
from asgi_closecodes.logs.messages import LINES
from asgi_closecodes.telemetry.metrics import code_label

MOST_GROWTH = 16 << 20
"""Bytes that the process may have grown after the warm-up: servers and allocators have habits."""

_PHRASES = ("never retrieved", "never awaited", "Task was destroyed", "closecodes.background.failed", "Fatal Python")
_COUNTS = ("sessions", "open", "busy", "stalled", "leaving", "leaving_refused")


def left_over(state, start):
    """Yield what is still there, of a process that has no peers any more."""
    if (snapshot := state.get("snapshot")) is not None:
        for name in _COUNTS:
            if snapshot.get(name):
                yield f"{name} = {snapshot[name]}"
        for gate in snapshot["gates"]:
            if gate["cause"] not in {"lag", "memory", "cpu"} and gate["usage"]:
                yield f"{gate['name']}: {gate['usage']} in use"
    if state["session objects"]:
        yield f"{state['session objects']} Session objects"
    if (more := len(state["descriptors"]) - len(start["descriptors"])) > 0:
        names = Counter(re.sub(r"\d+", "N", name) for name in state["descriptors"])
        names.subtract(re.sub(r"\d+", "N", name) for name in start["descriptors"])
        yield f"{more} descriptors: {dict(+names)}"
    if (more := state["tasks"] - start["tasks"]) > 1:  # the ticker comes and goes
        yield f"{more} tasks"


def growth(warm, end):
    if (grown := end["rss"] - warm["rss"]) > MOST_GROWTH:
        yield f"memory grew by {grown / 2**20:.1f} MiB after the warm-up"


def phrases(log):
    """Yield what nobody should find in the output of a server."""
    for phrase in _PHRASES:
        if count := log.count(phrase):
            start = log.index(phrase)
            yield f'"{phrase}" in the log, {count} times: {log[max(start - 200, 0) : start + 800]}'


def tracebacks(log):
    """Count the stack traces that stand outside of our records, by what was raised."""
    found, is_inside = Counter(), False
    for line in log.splitlines():
        if line.startswith("{"):
            is_inside = False
        elif "Traceback (most recent call last)" in line:
            is_inside = True
        elif is_inside and re.match(r"\s*[|+ ]*[A-Za-z_.]+(Error|Exception|Disconnected|Group|Break)\b", line):
            found[line.strip()[:120]] += 1
            is_inside = False
    return found


def logged(log):
    """Return how many events of each name the log tells of, one by one and as sums; and how many of these as sums."""
    told, summed = Counter(), Counter()
    for line in log.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        name = record.get("event.name") if isinstance(record, dict) else None
        if name is None:
            continue
        shadow = " shadow" if record.get("closecodes.refusal.mode") == "shadow" else ""
        left_out = sum(
            record.get(f"closecodes.{sampler}.suppressed", 0) for sampler in ("error", "refusal", "saturation")
        )
        of = record.get("closecodes.suppressed.event")
        told[(of or name) + shadow] += left_out + (of is None)
        summed[of or name] += left_out
    return told, summed


def sums(state, log):
    """Yield which of the sums in events, snapshot, metrics and log differ."""
    events, snapshot = Counter(state["events"]), state["snapshot"]
    told, summed = logged(log)

    def metric(name, **labels):
        return sum(
            value
            for found, its, value in state["metrics"]
            if found == f"closecodes_{name}" and labels.items() <= its.items()
        )

    refused_in_shadow = metric("refusals_total", mode="shadow")
    over = metric("sessions_closed_total")
    equal = {
        "errors": {
            "events": events["SessionFailed"], "snapshot": snapshot["errors"], "metrics": metric("errors_total"),
        },
        "refusals": {
            "events": events["SessionRefused"],
            "snapshot": sum(snapshot["refusals"].values()),
            "metrics": metric("refusals_total") - refused_in_shadow,
        },
        "refusals in shadow": {"events": events["SessionRefused shadow"], "metrics": refused_in_shadow},
        "sheds": {"events": events["SessionShed"], "snapshot": sum(snapshot["sheds"].values())},
        "sessions": {
            "admitted": events["SessionAdmitted"],
            "closed": events["SessionClosed"],
            "started in metrics": metric("sessions_started_total"),
            "closed in metrics": over,
            "closed in snapshot": sum(snapshot["closes"].values()) + metric("sessions_closed_total", code="none"),
        },
        "active": {"metrics": metric("sessions_active"), "all": 0},
        "failed closes": {"events": events["CloseFailed"], "metrics": metric("close_failures_total")},
    }  # fmt: skip
    codes = Counter()
    for code, count in snapshot["closes"].items():
        codes[code_label(Close(int(code)))] += count
    for label, count in codes.items():
        equal[f"closes with {label}"] = {"snapshot": count, "metrics": metric("sessions_closed_total", code=label)}
    for kind, line in LINES.items():
        if line.sampler is None:
            continue
        for shadow in ("", " shadow") if kind.__name__ == "SessionRefused" else ("",):
            equal[f"{line.name}{shadow}"] = {"events": events[kind.__name__ + shadow], "log": told[line.name + shadow]}
        equal[f"left out of the log: {line.name}"] = {
            "events": events[f"LogsSuppressed {line.name}"],
            "metrics": metric("log_suppressed_total", event=line.name),
            "log": summed[line.name],
        }
    for what, values in equal.items():
        if len(set(values.values())) > 1:
            yield f"{what}: {', '.join(f'{value:g} in {where}' for where, value in values.items())}"
