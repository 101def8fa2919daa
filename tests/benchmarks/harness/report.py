"""What came out, for people and for machines: a table in Markdown, JSON with every sample, a plot a benchmark."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

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
    yield "| figure | of | beside | median | 95 % of medians | goal | |"
    yield "|---|---|---|---|---|---|---|"
    for result in measured.results():
        comparison = result.of
        beside = comparison.beside or ""
        what = f"{comparison.figure}, {comparison.by}" if beside else comparison.figure
        values = f"{number(result.median)} | {number(result.low)} to {number(result.high)}"
        yield f"| {what} | {comparison.subject} | {beside} | {values} | {comparison.goal()} | {said(result)} |"
    yield ""
    for subject, why in measured.left_out.items():
        yield f"Left out: {subject}: {why}."
        yield ""


def said(result: Result) -> str:
    """Return the verdict in words."""
    match result.verdict:
        case "refused":
            return "**refused**: the spread is wider than the difference to the goal"
        case "missed":
            return "**missed**"
        case verdict:
            return verdict


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
                    "results": [_plain(result) for result in measured.results()],
                    "samples": measured.samples,
                }
                for name, measured in all_measured.items()
            },
        },
        indent=1,
        allow_nan=False,
    )


def _plain(result: Result) -> dict[str, object]:
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
    """Draw every sample of the figures that are compared, and the medians, as PNG and SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = name  # the same samples are the same file
    figures = [*dict.fromkeys(comparison.figure for comparison in measured.benchmark.comparisons)]
    subjects = [*measured.samples]
    size = (2 + 4 * len(figures), 1.2 + 0.4 * len(subjects))
    drawing, axes = plt.subplots(1, len(figures), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for figure, plane in zip(figures, axes[0], strict=True):
        drawn = {subject: measured.samples[subject].get(figure, ()) for subject in subjects}
        for row, values in enumerate(drawn.values()):
            plane.plot(values, [row] * len(values), "o", alpha=0.35, color=f"C{row % 10}")
            if values:
                plane.plot(statistics.median(values), row, "|", markersize=22, markeredgewidth=2, color="black")
        positive = [value for values in drawn.values() for value in values if value > 0]
        if positive and max(positive) > 50 * min(positive):
            plane.set_xscale("log")
        elif positive:
            plane.set_xlim(left=0)
        plane.set_xlabel(figure)
        plane.set_yticks(range(len(subjects)), subjects)
        plane.grid(axis="x", alpha=0.3)
    axes[0][0].invert_yaxis()
    drawing.suptitle(measured.benchmark.about.replace("`", ""))
    for kind in ("png", "svg"):
        drawing.savefig(folder / f"{name}.{kind}", dpi=120, metadata={"Date": None} if kind == "svg" else None)
    plt.close(drawing)
