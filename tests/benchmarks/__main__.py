"""Runs the benchmarks: ``python -m tests.benchmarks``. Tables go to standard output, everything else to a folder."""

import argparse
import datetime as dt
import logging
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from .harness.paired import FEWEST_PAIRS
from .harness.suite import REMEDY, Run, Unfit, named, names, raise_file_limit

RESULTS = Path(__file__).parent / "results"
NEEDED = ("matplotlib", "numpy", "picows", "psutil", "rich", "uvloop")
"""By the suite itself, and by the libraries that it draws with. Not imported here: what is measured in this process
is to have it for itself."""


def main():
    found = names()
    options = _options(found)
    if options.page:
        from . import performance  # some of NEEDED are imported there

        options.only = options.only or performance.TIMED
    if options.list:
        for name in found:
            print(f"{name:10} {named(name).about}")
        return 0
    from .harness import report  # some of NEEDED are imported there, and who mistypes an option need not wait for it

    chosen = [name for name in found if name in (options.only or found)]
    logging.getLogger("asgi_closecodes").addHandler(logging.NullHandler())
    cores = sorted(os.sched_getaffinity(0))
    where = report.machine()
    for warning in _warnings(where):
        print(f"warning: {warning}", file=sys.stderr)
    os.sched_setaffinity(0, {cores[0]})  # and what is started from here, but for the load generator
    raise_file_limit()

    measured, failed, page = {}, {}, [*_head(where)]
    with tempfile.TemporaryDirectory() as folder, _progress() as progress:
        run = Run(options.quick, Path(folder), (cores[0], cores[-1]), options.pairs)
        with run.stack:
            for name in chosen:
                task = progress.add_task(name, total=1.0)
                begun_at = time.monotonic()
                try:
                    measured[name] = named(name).measure(run, lambda share, task=task: progress.advance(task, share))
                    progress.update(task, completed=1.0)
                    for subject, why in measured[name].left_out.items():
                        print(f"Left out: {name}, {subject}: {why}", file=sys.stderr)
                    page.append("\n".join(report.table(name, measured[name])))
                    print(page[-1], flush=True)
                    report.plot(name, measured[name], options.output)
                    if options.page:
                        performance.keep(where, name, measured[name])
                except Exception as error:  # the others go on
                    failed[name] = str(error) if isinstance(error, Unfit) else f"{type(error).__name__}: {error}"
                    page.append(f"Failed: {name}: {failed[name]}\n")
                    print(page[-1], file=sys.stderr)
                print(f"{name}: {time.monotonic() - begun_at:.0f} s", file=sys.stderr)
                # After each, not after all: a run that is interrupted leaves what it had.
                (options.output / "results.json").write_text(report.as_json(where, measured, failed))
                (options.output / "results.md").write_text("\n".join(page))
    print(f"written to {options.output}", file=sys.stderr)
    return 1 if failed else 0


def _options(found):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure, beside the peers.")
    parser.add_argument("--only", action="append", metavar="NAME", choices=found, help="this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small numbers: only to see that it works")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--pairs", type=_pairs, help=f"turns of each; fewer than {FEWEST_PAIRS} are not judged")
    parser.add_argument("--page", action="store_true", help="take the figures into README.md here")
    parser.add_argument("--output", type=Path, help="a folder for JSON, Markdown and plots")
    options = parser.parse_args()
    if options.page and (options.quick or (options.pairs or FEWEST_PAIRS) < FEWEST_PAIRS):
        parser.error(f"--page: its figures have to be judged; use --pairs {FEWEST_PAIRS} or more, and no --quick")
    if options.output is None:
        options.output = RESULTS / f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H%M}{'-quick' if options.quick else ''}"
    if not options.list:
        try:
            options.output.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=options.output).close()
        except OSError as error:
            parser.error(f"--output {options.output}: {error.strerror}; name a folder that can be written to")
    return options


def _pairs(text):
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: use a number of turns, 1 or more")
    return int(text)


def _warnings(where):
    if where["cores"] == 1:
        yield "one core: the load generator takes its time from the servers, so figures of live servers are too low"
    if where["load"] > 0.5:
        yield f"this machine is busy (load {where['load']:.1f}): expect wide spreads"


def _head(where):
    yield f"{where['date']}, `{where['command']}`: Python {where['python']}, {where['processor']}, {where['cores']} cores, {where['system']}."
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version) + "."
    yield ""


def _progress():
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:10}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(
        *columns,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        redirect_stdout=sys.stdout.isatty(),  # above the bars; what is a file or a pipe stays one
    )


if __name__ == "__main__":
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("the benchmarks need Linux: they pin processes to cores and read /proc")
    if missing := [module for module in NEEDED if find_spec(module) is None]:
        sys.exit(f"the benchmarks need {', '.join(missing)}: {REMEDY}")
    sys.exit(main())
