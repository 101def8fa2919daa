"""The table in README.md: what has a goal, in all runs that are kept."""

import json
from pathlib import Path

from .harness.paired import Comparison, number
from .harness.report import said

RESULTS = Path(__file__).parent / "results"


def runs():
    """Return the benchmarks of each run that is kept, by its name."""
    return {
        folder.name.replace("-", " "): json.loads((folder / "results.json").read_text())["benchmarks"]
        for folder in sorted(RESULTS.glob("run-*"))
    }


def table():
    """Yield the lines of the table in Markdown."""
    kept = runs()
    yield f"| | figure | of | beside | goal | {' | '.join(kept)} |"
    yield "|---|---|---|---|---" + "|---" * len(kept) + "|"
    for name in sorted(set().union(*kept.values())):
        for results in zip(*(benchmarks[name]["results"] for benchmarks in kept.values()), strict=True):
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
