"""The table of the README's section on performance: what has a goal, in all runs that are kept."""

import json
from pathlib import Path

from .harness.paired import number

RUNS = sorted((Path(__file__).parent / "results").glob("run-*"))


def table():
    """Yield the lines of the table in Markdown."""
    runs = [json.loads((run / "results.json").read_text())["benchmarks"] for run in RUNS]
    yield f"| | figure | of | beside | goal | {' | '.join(run.name.replace('-', ' ') for run in RUNS)} |"
    yield "|---|---|---|---|---" + "|---" * len(RUNS) + "|"
    for name in runs[0]:
        for results in zip(*(run[name]["results"] for run in runs), strict=True):
            result = results[0]
            if goal := _goal(result):
                beside = f"{result['beside']}, {result['by']}" if result["beside"] else ""
                figures = " | ".join(map(_said, results))
                yield f"| `{name}` | {result['figure']} | {result['subject']} | {beside} | {goal} | {figures} |"


def _goal(result):
    if result["most"] is not None:
        return f"≤ {number(result['most'])}"
    return "" if result["least"] is None else f"≥ {number(result['least'])}"


def _said(result):
    low, median, high = (number(result[name]) for name in ("low", "median", "high"))
    verdict = {"missed": ", **missed**", "refused": ", *open*", "too few pairs": ", *open*"}.get(result["verdict"], "")
    return f"{median} ({low} to {high}){verdict}"


if __name__ == "__main__":
    print(*table(), sep="\n")
