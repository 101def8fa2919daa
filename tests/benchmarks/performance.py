"""The table of the README's section on performance: what has a goal, in all runs that are kept."""

import json
from pathlib import Path

from .harness.paired import Comparison, number
from .harness.report import said

RUNS = sorted((Path(__file__).parent / "results").glob("run-*"))


def table():
    """Yield the lines of the table in Markdown."""
    runs = [json.loads((run / "results.json").read_text())["benchmarks"] for run in RUNS]
    yield f"| | figure | of | beside | goal | {' | '.join(run.name.replace('-', ' ') for run in RUNS)} |"
    yield "|---|---|---|---|---" + "|---" * len(RUNS) + "|"
    for name in runs[0]:
        for results in zip(*(run[name]["results"] for run in runs), strict=True):
            comparison = Comparison(**{field: results[0][field] for field in Comparison.__slots__})
            if goal := comparison.goal():
                beside = f"{comparison.beside}, {comparison.by}" if comparison.beside else ""
                figures = " | ".join(map(_told, results))
                yield f"| `{name}` | {comparison.figure} | {comparison.subject} | {beside} | {goal} | {figures} |"


def _told(result):
    low, median, high = (number(result[name]) for name in ("low", "median", "high"))
    verdict = "" if result["verdict"] == "reached" else f", {said(result['verdict'])}"
    return f"{median} ({low} to {high}){verdict}"


if __name__ == "__main__":
    print(*table(), sep="\n")
