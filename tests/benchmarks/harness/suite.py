"""A benchmark is its subjects, measured in turns, and what of them is compared; a module each.

BENCHMARK = Benchmark("What a wink costs", [Comparison("ns", "winking", "blinking", most=1.1)])

@BENCHMARK.subject("winking")
@contextmanager
def winking(run):
    yield lambda: {"ns": ...}  # one turn; what has to be there before stands above, and what is cleared up below
"""

from __future__ import annotations

import importlib
import keyword
import math
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from .paired import Comparison, Result, Samples

if TYPE_CHECKING:
    from .counting import Counter
    from .load import Load

Turn: TypeAlias = Callable[[], Mapping[str, float]]
Subject: TypeAlias = Callable[["Run"], AbstractContextManager[Turn]]

REMEDY = "pip install -e '.[benchmark]'"
"""Of whatever Python module is missing."""


class Unfit(Exception):
    """This machine, or what is installed on it, is not enough for a benchmark; the text says what is."""


@contextmanager
def _unfit_if_missing() -> Iterator[None]:
    """Do nothing.

    :raises Unfit: if a module is missing that is imported meanwhile.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        raise Unfit(f"there is no module {missing.name}: {REMEDY}") from missing


def raise_file_limit() -> None:
    """Allow this process as many open files as any benchmark may need, or as many as it may allow itself.

    Before anything is started: a process keeps the limit that it was born with.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ample = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < ample:
        resource.setrlimit(resource.RLIMIT_NOFILE, (ample, hard))


@dataclass(slots=True)
class Run:
    """What a run was asked for.

    :param quick: only to see that it works: small numbers, few turns.
    :param folder: for what servers write.
    :param cores: of the server, and of the load generator.
    """

    quick: bool
    folder: Path
    cores: tuple[int, int] = (0, 0)
    pairs: int | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    _load: Load | None = None
    _counter: Counter | None = None

    def size(self, full: int, quick: int) -> int:
        """Return how many of something there are to be."""
        return quick if self.quick else full

    @property
    def seconds(self) -> float:
        """How long a turn on a live server takes."""
        return 0.1 if self.quick else 0.5

    @property
    def load(self) -> Load:
        """The load generator, which is started when it is first asked for."""
        if self._load is None:
            from .load import Load

            self._load = Load(self.cores[1])
            self.stack.callback(self._load.stop)
        return self._load

    @property
    def counter(self) -> Counter:
        """What counts instructions, started when it is first asked for.

        :raises Unfit: if there is no valgrind.
        """
        if self._counter is None:
            from .counting import Counter

            self._counter = Counter(self.folder)
            self.stack.callback(self._counter.stop)
        return self._counter

    def needs_files(self, count: int) -> None:
        """See that the load generator may have ``count`` files open, beside the sockets that it holds by now.

        :raises Unfit: if it may not.
        """
        if self._load is not None:
            count += self._load.held()
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if allowed != resource.RLIM_INFINITY and allowed < count:
            raise Unfit(f"needs {count} open files a process, and {allowed} are allowed: ulimit -n {count}")


@dataclass(slots=True)
class Benchmark:
    """What is measured, and what is compared.

    :param pairs: turns of each subject.
    :param short_turns: how many short turns stand for each of these: the tail of a distribution is known by many of
        them, since what else a machine does spoils only some.
    :param warms_up: whether the first turn of each does not count; a quick run has no such turn.
    """

    about: str
    comparisons: list[Comparison] = field(default_factory=list)
    pairs: int = 21
    warms_up: bool = True
    short_turns: int = 1
    subjects: dict[str, Subject] = field(default_factory=dict)

    def subject(self, name: str) -> Callable[[Subject], Subject]:
        """Register a subject: a context manager that yields what measures one turn."""

        def register(subject: Subject) -> Subject:
            self.subjects[name] = subject
            return subject

        return register

    def measure(self, run: Run, advance: Callable[[float], object] = lambda _share: None) -> Measured:
        """Measure all subjects in turns: A B, B A, A B, …; what this machine is not fit for is left out.

        :param advance: told each share of the work that is done.
        :raises Unfit: if nothing remains.
        """
        turns: dict[str, Turn] = {}
        left_out: dict[str, str] = {}
        pairs = (run.pairs or (1 if run.quick else self.pairs)) * run.size(self.short_turns, 1)
        with ExitStack() as stack:
            for name, subject in self.subjects.items():
                try:
                    with _unfit_if_missing():
                        turns[name] = stack.enter_context(subject(run))
                except Unfit as lack:
                    left_out[name] = str(lack)
            if not turns:
                raise Unfit("; ".join(f"{name}: {why}" for name, why in left_out.items()))
            samples: dict[str, dict[str, list[float]]] = {name: {} for name in turns}
            numbers = range(0 if self.warms_up and not run.quick else 1, pairs + 1)
            for number in numbers:
                for name in [*turns][:: -1 if number % 2 else 1]:
                    for figure, value in turns[name]().items():
                        assert math.isfinite(value), f"{figure} of {name} is {value}"
                        samples[name].setdefault(figure, []).extend([value] if number else [])
                    advance(1 / len(numbers) / len(turns))
        return Measured(self, samples, left_out)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out."""

    benchmark: Benchmark
    samples: Samples
    left_out: Mapping[str, str]
    """Why a subject was not measured, by its name."""

    def results(self) -> list[Result]:
        """Return the comparisons of what was measured; beside the server's time its instructions, where they were counted."""
        results = []
        for wanted in self.benchmark.comparisons:
            if wanted.needs() <= self.samples.keys():
                results.append(wanted.result(self.samples))
                counted = replace(wanted, figure="server instructions")
                if wanted.figure == "server us" and counted.figure in self.samples[wanted.subject]:
                    results.append(counted.result(self.samples))
        return results


def names() -> list[str]:
    """Return the names of the modules that have a BENCHMARK.

    They are read, not imported: what one of them needs, or another tool in the folder, may be missing.
    """
    modules = sorted(Path(__file__).parents[1].glob("*.py"))
    return [module.stem.removesuffix("_") for module in modules if "\nBENCHMARK = " in module.read_text("utf-8")]


def named(name: str) -> Benchmark:
    """Return a benchmark.

    :raises Unfit: if its module needs one that is missing.
    """
    with _unfit_if_missing():
        module = f"{name}_" if keyword.iskeyword(name) else name
        return importlib.import_module(f"tests.benchmarks.{module}").BENCHMARK
