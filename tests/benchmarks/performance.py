"""The table of the page on performance: what has a goal, in all runs that are kept.

``python -m tests.benchmarks.performance`` prints it. With ``--keep`` it first takes the figures of the runs in
results/run-*, without their samples: those, and most plots, stay with who measured them.
"""

import json
import sys
from pathlib import Path

from .harness.paired import Comparison, number
from .harness.report import said

RESULTS = Path(__file__).parent / "results"


KEPT = RESULTS / "kept.json"


def keep():
    """Write the figures of each run that lies in results/."""
    runs = {}
    for folder in sorted(RESULTS.glob("run-*")):
        run = json.loads((folder / "results.json").read_text())
        for benchmark in run["benchmarks"].values():
            del benchmark["samples"]
        runs[folder.name.replace("-", " ")] = run
    KEPT.write_text(json.dumps(runs, indent=1) + "\n")


def table():
    """Yield the lines of the table in Markdown."""
    kept = {name: run["benchmarks"] for name, run in json.loads(KEPT.read_text()).items()}
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
    if sys.argv[1:] == ["--keep"]:
        keep()
    print(*table(), sep="\n")
