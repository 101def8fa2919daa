"""``python -m tests.live.upstream [DIRECTORY]``: run Starlette's, uvicorn's and FastAPI's own tests, bare and wrapped.

It downloads the releases that are installed here, with their tests, and what these import into an environment of
their own. Nothing in the running environment changes. DIRECTORY keeps all of it for the next run.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from .suites import SUITES, Suite

HERE = Path(__file__).resolve().parent
TIMEOUT = 1200


class NotRun(Exception):
    """A suite could not be run here."""


class Run(NamedTuple):
    outcomes: dict[str, str]
    traces: dict[str, str]
    sessions: dict[str, int]

    def passed(self) -> set[str]:
        return {test for test, outcome in self.outcomes.items() if outcome == "passed"}


def command(*arguments: object, **kwargs) -> None:
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, **kwargs)
    if done.returncode:
        raise NotRun((done.stderr or done.stdout).strip()[-500:])


def environment(directory: Path) -> Path:
    """Make an environment on top of the running one; return its Python."""
    root = directory / "environment"
    python = root / "bin" / "python"
    if not python.exists():
        venv.create(root, with_pip=True)
        below = sysconfig.get_path("purelib")
        own = Path(sysconfig.get_path("purelib", vars={"base": str(root)}))
        (own / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    return python


def unpacked(suite: Suite, directory: Path) -> Path:
    """Return the directory with the tests of ``suite``, without the package itself: the installed one is tested."""
    release = f"{suite.name}-{version(suite.name)}"
    root = directory / release
    if not root.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command(*pip, "--no-deps", "--no-binary", ":all:", "--dest", directory, release.replace("-", "=="))
        with tarfile.open(directory / f"{release}.tar.gz") as archive:
            members = [m for m in archive if not m.name.startswith(f"{release}/{suite.name}/")]
            archive.extractall(directory, members, filter="data")
    return root


def files(suite: Suite, root: Path) -> list[str]:
    found = [
        str(path.relative_to(root))
        for path in sorted((root / "tests").rglob("test_*.py"))
        if "websocket" in path.read_text(encoding="utf-8").lower() and "benchmarks" not in path.parts
    ]
    return [name for name in found if name not in suite.left_out]


def run(suite: Suite, root: Path, python: Path, tests: list[str], *, wrapped: bool) -> Run:
    result = root / f"result-{wrapped}.json"
    result.unlink(missing_ok=True)
    variables = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "UPSTREAM_WRAPPED": str(int(wrapped)),
        "UPSTREAM_RESULT": str(result),
    }
    with open(root / f"output-{wrapped}.txt", "w") as output:
        subprocess.run(
            [
                *[python, "-m", "pytest", "-p", "wrap", "-p", "no:cacheprovider", "-o", "addopts=", "--timeout=60"],
                "--continue-on-collection-errors",
                "--quiet",
                *tests,
            ],
            cwd=root,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
        )
    if not result.exists():
        raise NotRun(f"pytest did not finish: see {output.name}")
    return Run(**json.loads(result.read_text()))


def covers(expected: str, test: str) -> bool:
    return expected == test or expected == test.partition("[")[0]


def compare(suite: Suite, bare: Run, wrapped: Run) -> bool:
    """Print what became of ``suite``; return whether nothing is unexpected."""
    red = bare.passed() - wrapped.passed()
    expected = {test for test in red if any(covers(e, test) for e in suite.expected_red)}
    unexpected = sorted(red - expected)
    surprises = sorted(
        e
        for e in suite.expected_red
        if ((its := [t for t in bare.outcomes if covers(e, t)]) and set(its) - red) or not its
    )
    in_sockets = [test for test in bare.passed() if wrapped.sessions.get(test)]
    print(
        f"{suite.name + ' ' + version(suite.name):<18} {len(bare.outcomes):>6} {len(in_sockets):>10} {len(bare.passed()):>11}"
        f" {len(wrapped.passed()):>14} {len(expected):>12} {len(unexpected):>14}",
        flush=True,
    )
    notes = [f"  unexpected red: {test}: {tail(wrapped, test)}" for test in unexpected]
    notes += [f"  expected red, but is not: {test}" for test in surprises]
    notes += [
        f"  failed without the middleware: {test}: {tail(bare, test)}"
        for test, outcome in bare.outcomes.items()
        if outcome not in {"passed", "skipped"}
    ]
    if not in_sockets:
        notes.append("  no test has opened a WebSocket through the middleware")
    print(*notes, sep="\n", end="\n" if notes else "")
    return not unexpected and not surprises and bool(in_sockets)


def tail(run: Run, test: str) -> str:
    lines = [line for line in run.traces.get(test, "").splitlines() if line.startswith("E ")]
    return lines[-1][2:].strip() if lines else run.outcomes.get(test, "did not run")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.live.upstream", description=__doc__.partition("\n\n")[0])
    parser.add_argument("directory", nargs="?", type=Path, help="keep downloads and output here")
    parser.add_argument("--suite", action="append", choices=[suite.name for suite in SUITES])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = (arguments.directory or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        good = True
        print("suite               tests in sockets passed bare passed wrapped expected red unexpected red", flush=True)
        for suite in SUITES:
            if arguments.suite and suite.name not in arguments.suite:
                continue
            try:
                python = environment(directory)
                pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                command(*pip, "pytest-timeout", *suite.extras)
                root = unpacked(suite, directory)
                tests = files(suite, root)
                bare = run(suite, root, python, tests, wrapped=False)
                wrapped = run(suite, root, python, tests, wrapped=True)
            except (NotRun, subprocess.TimeoutExpired) as error:
                print(f"{suite.name:<18} not run: {error}", flush=True)
                good = False
                continue
            good &= compare(suite, bare, wrapped)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
