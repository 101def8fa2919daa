"""What came out, for people and for machines: a table in Markdown, JSON with every sample, a plot a benchmark."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .live import instructions_are_counted
from .paired import Result, number
from .suite import Measured

PACKAGES = (
    *("asgi-closecodes", "starlette", "anyio", "pydantic-settings", "uvicorn", "uvloop", "websockets", "hypercorn"),
    *("picows", "sentry-sdk", "opentelemetry-instrumentation-asgi", "limits", "aiolimiter", "redis"),
)


def table(name: str, measured: Measured) -> Iterator[str]:
    """Yield the lines of a table in Markdown, and what was left out."""
    yield f"**`{name}`**: {measured.benchmark.about}."
    yield ""
    yield "| figure | of | beside | median | its 95 % interval | goal | |"
    yield "|---|---|---|---|---|---|---|"
    for result in measured.results():
        comparison = result.of
        beside = comparison.beside or ""
        what = f"{comparison.figure}, {comparison.by}" if beside else comparison.figure
        values = f"{number(result.median)} | {number(result.low)} to {number(result.high)}"
        yield f"| {what} | {comparison.subject} | {beside} | {values} | {comparison.goal()} | {said(result.verdict)} |"
    if any(result.verdict == "refused" for result in measured.results()):
        yield ""
        yield "Refused: the spread is wider than the difference to the goal."
    yield ""
    for subject, why in measured.left_out.items():
        yield f"Left out: {subject}: {why}."
        yield ""


def said(verdict: str) -> str:
    """Return ``verdict`` in Markdown."""
    return {"missed": "**missed**", "refused": "*refused*"}.get(verdict, verdict)


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    model = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    ]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m tests.benchmarks", *sys.argv[1:]]),
        "processor": model[0] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "instructions": instructions_are_counted(),
    }


def as_json(where: Mapping[str, object], all_measured: Mapping[str, Measured], failed: Mapping[str, str]) -> str:
    """Return everything."""
    return json.dumps(
        {
            "machine": where,
            "failed": dict(failed),
            "benchmarks": {
                name: {
                    "about": measured.benchmark.about,
                    "left_out": dict(measured.left_out),
                    "results": [plain(result) for result in measured.results()],
                    "samples": measured.samples,
                }
                for name, measured in all_measured.items()
            },
        },
        indent=1,
        allow_nan=False,
    )


def plain(result: Result) -> dict[str, object]:
    """Return ``result`` as JSON has it."""
    comparison = result.of
    return {
        **{name: getattr(comparison, name) for name in ("figure", "subject", "beside", "by", "most", "least")},
        **{name: _finite(getattr(result, name)) for name in ("median", "low", "high")},
        "pairs": result.pairs,
        "verdict": result.verdict,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def plot(name: str, measured: Measured, folder: Path) -> None:
    """Draw every sample of the figures that are compared, and every pair with its median, interval and goal; PNG and SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = name  # the same samples are the same file
    planes = _planes(measured)
    most = max(len(rows) for _, rows in planes)
    lines = math.ceil(len(planes) / 3)
    columns = math.ceil(len(planes) / lines)
    size = (6 * columns, (1.2 + 0.4 * most) * lines)
    drawing, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for plane in axes.flat[len(planes) :]:
        plane.set_axis_off()
    for plane, (title, rows) in zip(axes.flat, planes, strict=False):
        _draw(plane, title, rows)
    drawing.suptitle(measured.benchmark.about.replace("`", ""))
    for kind in ("png", "svg"):
        drawing.savefig(folder / f"{name}.{kind}", dpi=100, metadata={"Date": None} if kind == "svg" else None)
        drawing.set_layout_engine("none")  # it takes as long as to draw, and keeps the first one's
    plt.close(drawing)


def _planes(measured: Measured) -> list[tuple[str, dict[str, tuple[Sequence[float], Result | None]]]]:
    """Return what is drawn side by side: a title, and the values of each row, with what is said of them."""
    planes: dict[str, dict[str, tuple[Sequence[float], Result | None]]] = {}
    for figure in dict.fromkeys(result.of.figure for result in measured.results()):
        drawn = {subject: figures.get(figure, ()) for subject, figures in measured.samples.items()}
        planes[figure] = {subject: (values, None) for subject, values in drawn.items() if values}
    for result in measured.results():
        comparison = result.of
        if comparison.beside is None:
            planes[comparison.figure][comparison.subject] = (comparison.values(measured.samples), result)
        else:
            rows = planes.setdefault(f"{comparison.figure}, {comparison.by}", {})
            rows[f"{comparison.subject}\n/ {comparison.beside}"] = (comparison.values(measured.samples), result)
    return [*planes.items()]


def _draw(plane: Any, title: str, rows: Mapping[str, tuple[Sequence[float], Result | None]]) -> None:
    for row, (values, result) in enumerate(rows.values()):
        plane.plot(values, [row] * len(values), "o", alpha=0.35, color=f"C{row % 10}")
        if result is None:
            continue
        plane.plot([result.low, result.high], [row, row], "-", linewidth=2, color="black")
        plane.plot(result.median, row, "|", markersize=16, markeredgewidth=2, color="black")
        goal = result.of.least if result.of.most is None else result.of.most
        if goal is not None:
            plane.plot([goal, goal], [row - 0.4, row + 0.4], "--", color="C3")
    drawn = [value for values, _ in rows.values() for value in values if math.isfinite(value)]
    if drawn and min(drawn) > 0:
        if max(drawn) > 50 * min(drawn):
            plane.set_xscale("log")
        else:
            plane.set_xlim(left=0)
    plane.set_xlabel(title)
    plane.set_yticks(range(len(rows)), rows)
    plane.set_ylim(len(rows) - 0.5, -0.5)
    plane.grid(axis="x", alpha=0.3)
