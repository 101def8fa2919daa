"""The page on performance, README.md beside this file, from the figures that page.json keeps.

``python -m tests.benchmarks --page`` measures and writes both; ``python -m tests.benchmarks.performance`` writes the
page alone.
"""

import json
from itertools import groupby
from pathlib import Path

from .harness.paired import Comparison, number
from .harness.report import plain, said
from .harness.suite import named, names

KEPT = Path(__file__).parent / "page.json"
PAGE = Path(__file__).parent / "README.md"
NOT_YET = "*(not measured yet)*"

TIMED = ("message", "echo", "admit", "refuse", "crash", "import", "flood", "deadlines", "overload")
"""What has to be measured anew after a change, on a machine that does nothing else."""

COUNTED = ("instructions", "memory", "storm")
"""What a busy machine does not change."""


def keep(where, name, measured):
    """Take the figures of a benchmark into page.json instead of older ones, and write the page."""
    kept = json.loads(KEPT.read_text("utf-8"))
    results = [plain(result) for result in measured.results()]
    kept[name] = {"machine": where, "left_out": dict(measured.left_out), "results": results}
    KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")
    write()


def write():
    """Write the page."""
    PAGE.write_text(page(json.loads(KEPT.read_text("utf-8"))), "utf-8")


def page(kept):
    """Return the page in Markdown."""
    return "\n".join([*_decisions(kept), "", *_how(), "", *_goals(kept), "", *_machines(kept), "", *_all(kept)]) + "\n"


def _decisions(kept):
    """Yield what a reader decides by."""

    def median(name, *comparison, **by):
        result = _result(kept, name, Comparison(*comparison, **by))
        return NOT_YET if result is None else f"**{number(result['median'])}**"

    p99, idle = "p99 ms", "gate, nobody knocks"
    difference = {"by": "difference"}
    counted = "both wrapped and counted by hand"
    yield "# Performance"
    yield ""
    yield (
        "* **An overload** is what the gates are for. While 200 clients a second ask for 20 places, the slowest messages (99th "
        f"percentile) of those inside take {median('overload', p99, 'gate, by close', idle)} times as long as when nobody "
        f"knocks. Without a gate they take {median('overload', p99, 'ungated', idle)} times as long."
    )
    yield (
        f"* **A message** that is received and one that is sent cost {median('message', 'ns a pair', 'middleware', 'bare', **difference)} ns "
        f"together, {median('message', 'ns a pair', 'middleware', counted)} times what two functions take that count them by hand. "
        f"On live uvicorn, {median('echo', 'round trips/s', 'middleware, 50 sockets', f'{counted}, 50 sockets')} of the round "
        "trips behind those two functions remain."
    )
    yield (
        f"* **A session** takes {median('memory', 'KiB a session', 'middleware', 'bare', **difference)} KiB and "
        f"{median('instructions', 'instructions a session', 'max_sessions', 'bare', **difference)} instructions more than without "
        f"the middleware. Refusals a second are {median('refuse', 'a second', 'refusals by 1013', '1013 by hand')} of those of an "
        f"application that does nothing else. The import adds {median('import', 'ms', 'fastapi and the middleware', 'fastapi', **difference)} "
        "ms to FastAPI's."
    )
    decisive = [
        name for name in ("overload", "message", "echo", "memory", "instructions", "refuse", "import") if name in kept
    ]
    if decisive:
        yield ""
        dates = sorted((_date(kept[name]), name) for name in decisive)
        by_date = groupby(dates, key=lambda pair: pair[0])
        yield "Measured on " + "; on ".join(f"{on}: {_listed(ones)}" for on, ones in by_date) + "."


def _how():
    yield (
        "What is above the same thing by hand buys: a handler that can be ended while it waits for a message; retry hints that no "
        "other client was given; one log record an error, with counts that add up."
    )
    yield ""
    yield "## Measure it"
    yield ""
    yield (
        "A figure and its peers take turns in one run, so that the machine's own drift falls out. A cell has the median and its "
        "95 % interval. **missed** is a goal that was not reached; *refused* is an interval that holds the goal: it proves nothing."
    )
    yield ""
    yield "```sh"
    yield "python -m tests.benchmarks --only message  # or another one of --list: tables, JSON and plots in results/"
    counted = " ".join(f"--only {name}" for name in COUNTED)
    yield f"python -m tests.benchmarks --page --pairs 7 {counted}  # into this page; on a busy machine too"
    yield f"python -m tests.benchmarks --page --pairs 7  # {', '.join(TIMED)}"
    yield "```"
    yield ""
    yield (
        "The last one needs a machine that does nothing else, for about twelve minutes. Without `--pairs` it takes three times as long, and "
        "the intervals are narrower."
    )
    yield ""
    yield (
        "A benchmark is a module here with a `BENCHMARK`: its subjects, what of them is compared, and the goals "
        "([harness/suite.py](harness/suite.py)). This page is made by [performance.py](performance.py) from "
        "[page.json](page.json)."
    )


def _goals(kept):
    yield "## Goals"
    yield ""
    yield "| | figure | of | beside | goal | measured | on |"
    yield "|---|---|---|---|---|---|---|"
    for name in sorted(names()):
        for comparison in named(name).comparisons:
            if goal := comparison.goal():
                result = _result(kept, name, comparison)
                measured, on = (
                    (NOT_YET, "") if result is None else (_told(result, comparison), kept[name]["machine"]["date"][:10])
                )
                beside = f"{comparison.beside}, {comparison.by}" if comparison.beside else ""
                yield f"| `{name}` | {comparison.figure} | {comparison.subject} | {beside} | {goal} | {measured} | {on} |"


def _machines(kept):
    by_machine = sorted((_machine(one), name) for name, one in kept.items())
    for machine, ones in groupby(by_machine, key=lambda pair: pair[0]):
        yield f"* {machine}: {_listed(ones)}."


def _machine(one):
    where = one["machine"]
    versions = where["versions"]
    return (
        f"{_date(one)}, on {where['processor']}, {where['cores']} cores, load {where['load']:.1f} at the start, Python "
        f"{where['python']}, uvicorn {versions['uvicorn']} with uvloop {versions['uvloop']}"
    )


def _all(kept):
    yield "## All figures"
    for name, one in sorted(kept.items()):
        yield ""
        yield f"<details><summary><code>{name}</code>: {named(name).about.replace('`', '')}</summary>"
        yield ""
        yield "| figure | of | beside | measured |"
        yield "|---|---|---|---|"
        for comparison in named(name).comparisons:
            if (result := _result(kept, name, comparison)) is not None:
                beside = f"{comparison.beside}, {comparison.by}" if comparison.beside else ""
                told = _told(result, comparison)
                yield f"| {comparison.figure} | {comparison.subject} | {beside} | {told} |"
        for subject, why in one["left_out"].items():
            yield ""
            yield f"Left out: {subject}: {why}."
        yield ""
        yield "</details>"


def _result(kept, name, comparison):
    """Return the figure of ``comparison`` that is kept, whatever its goal was; None if there is none."""
    wanted = [getattr(comparison, field) for field in ("figure", "subject", "beside", "by")]
    for result in kept.get(name, {"results": ()})["results"]:
        if [result[field] for field in ("figure", "subject", "beside", "by")] == wanted:
            return result
    return None


def _told(result, comparison):
    low, median, high = (result[name] for name in ("low", "median", "high"))
    verdict = comparison.verdict(low, high, result["pairs"])
    ending = f", {said(verdict)}" if verdict in {"missed", "refused", "too few pairs"} else ""
    return f"{number(median)} ({number(low)} to {number(high)}){ending}"


def _date(one):
    note = f" ({one['note']})" if "note" in one else ""
    return one["machine"]["date"][:10] + note


def _listed(pairs):
    return ", ".join(f"`{name}`" for _, name in pairs)


if __name__ == "__main__":
    write()
