"""The suite's own sums, and that it runs: no absolute time is asserted."""

import contextlib
import json
import math
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks import performance
from tests.benchmarks.harness import live, report
from tests.benchmarks.harness.paired import Comparison, interval, number
from tests.benchmarks.harness.suite import Benchmark, Measured, Run, Unfit, named, names

ROOT = Path(__file__).parents[2]
SPECIFIED = "message echo admit refuse crash overload memory memory_gate stalled growth cluster storm import format shed deadlines flood".split()


def suite(*arguments, after="", **options):
    """Run it as people do; or after some code, in the same process."""
    run = "import runpy; runpy.run_module('tests.benchmarks', run_name='__main__', alter_sys=True)"
    command = ["-c", f"{after}\n{run}"] if after else ["-m", "tests.benchmarks"]
    command = [sys.executable, *command, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, **options)


def hiding(*modules):
    """Return code after which these are not installed."""
    return f"import sys; sys.modules.update(dict.fromkeys({modules}))"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The folder that a quick run has written to, and what it said; of everything but what test_instructions runs."""
    folder = tmp_path_factory.mktemp("results")
    chosen = [word for name in names() if name != "instructions" for word in ("--only", name)]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return folder, suite(
        *("--quick", *chosen, "--output", str(folder)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard)),
    )


def test_everything_runs_and_its_sums_are_right(output):
    """Each turn on a live server asserts that every client saw what it was to see, and that none is missing."""
    folder, done = output
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert results["benchmarks"].keys() >= set(SPECIFIED)
    assert not results["failed"]
    assert results["machine"]["command"].startswith("python -m tests.benchmarks --quick")
    for name, benchmark in results["benchmarks"].items():
        assert benchmark["results"] or benchmark["left_out"], name
        for subject, figures in benchmark["samples"].items():
            assert figures, subject
            assert all(len(values) == 1 and all(map(math.isfinite, values)) for values in figures.values()), subject
        assert f"**`{name}`**" in done.stdout


def test_each_benchmark_is_drawn(output):
    folder, _ = output
    for name in SPECIFIED:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ET.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")


def test_table_of_a_run_goes_to_stdout_and_the_folder_only(output):
    folder, done = output
    assert done.stdout.strip()
    assert all(block in (folder / "results.md").read_text() for block in done.stdout.split("\n\n"))
    assert "\r" not in done.stderr  # no progress bar: it is no terminal


def test_table_with_only_stderr_a_terminal_goes_to_stdout(tmp_path):
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--only", "format", "--output", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # which is how a terminal ends
            while some := os.read(terminal, 65_536):
                seen += some
        os.close(terminal)
        printed = process.stdout.read()
    assert process.returncode == 0, seen
    assert "**`format`**" in printed
    assert "\x1b" not in printed
    assert b"\x1b" in seen  # there was a progress bar
    assert b"| figure |" not in seen


BROKEN = """
from tests.benchmarks import shed, storm

def failing(run):
    raise ArithmeticError("997 of 1000")

def interrupted(run):
    raise KeyboardInterrupt

shed.BENCHMARK.subjects["at rest"] = failing
storm.BENCHMARK.subjects["phoenix.js"] = interrupted
"""


def test_run_interrupted_keeps_results_and_failures(tmp_path):
    """A run that is interrupted leaves what it had, and what had failed."""
    chosen = [word for name in ("format", "shed", "storm") for word in ("--only", name)]
    done = suite("--quick", *chosen, "--output", str(tmp_path), after=BROKEN)
    assert done.stderr.endswith("KeyboardInterrupt\n")
    results = json.loads((tmp_path / "results.json").read_text())
    assert [*results["benchmarks"]] == ["format"]
    assert results["failed"] == {"shed": "ArithmeticError: 997 of 1000"}
    assert done.stdout in (tmp_path / "results.md").read_text()
    for text in (done.stderr, (tmp_path / "results.md").read_text()):
        assert "Failed: shed: ArithmeticError: 997 of 1000" in text
    assert (tmp_path / "format.png").exists()


# The page on performance


def test_page_is_what_its_figures_say():
    page = performance.page(json.loads(performance.KEPT.read_text("utf-8")))
    assert performance.PAGE.read_text("utf-8") == page, "run python -m tests.benchmarks.performance"


def test_page_begins_with_what_a_reader_decides_by():
    first = "\n".join(performance.page({}).splitlines()[:10])
    assert first.count("\n* **") == 3
    assert first.count(performance.NOT_YET) == 9


def test_page_takes_new_figures_instead_of_old_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(performance, "KEPT", tmp_path / "page.json")
    monkeypatch.setattr(performance, "PAGE", tmp_path / "README.md")
    performance.KEPT.write_text("{}")
    for received in (212.0, 424.0):
        values = {"middleware": received, "both wrapped and counted by hand": 200.0, "bare": 12.0}
        samples = {subject: {"ns a pair": [value] * 7, "blocks left": [1] * 7} for subject, value in values.items()}
        measured = Measured(named("message"), samples, {"sentry-sdk": "missing"})
        performance.keep(report.machine(), "message", measured)
    page = performance.PAGE.read_text()
    assert "cost **412** ns together, **2.12** times" in page
    assert "ratio | at most 1.10 | 2.12 (2.12 to 2.12), **missed** |" in page
    assert "Left out: sentry-sdk: missing." in page
    assert "1.06" not in page


@pytest.mark.parametrize("arguments", [("--quick",), ("--pairs", "6")])
def test_page_refuses_figures_that_are_not_judged(arguments):
    done = suite("--page", "--only", "message", *arguments)
    assert done.returncode == 2
    assert "use --pairs 7 or more, and no --quick" in done.stderr


GOALS = {
    ("instructions", "no limit", "bare", "most"): 70_000,
    ("instructions", "max_sessions", "bare", "most"): 75_000,
    ("instructions", "refused by 1013", "1013 by hand", "most"): 110_000,
    ("instructions", "refused by HTTP 503", "HTTP 503 by hand", "most"): 125_000,
    ("instructions", "crash in a storm", "bare crash", "most"): 170_000,
    ("memory", "middleware", "bare", "most"): 1.6,
    ("refuse", "refusals by 1013", "1013 by hand", "least"): 0.86,
    ("refuse", "refusals by HTTP 503", "HTTP 503 by hand", "least"): 0.86,
    ("crash", "1011, in a storm", "bare uvicorn (1006)", "least"): 1.32,
    ("message", "middleware", "both wrapped and counted by hand", "most"): 1.1,
    ("import", "fastapi and the middleware", "fastapi", "most"): 45,
    ("flood", "limit, one floods", "limit, nobody floods", "most"): 1.2,
}


@pytest.mark.parametrize(("name", "subject", "beside", "bound"), GOALS)
def test_goal_is_the_one_that_was_set(name, subject, beside, bound):
    [goal] = [
        getattr(comparison, bound)
        for comparison in named(name).comparisons
        if (comparison.subject, comparison.beside) == (subject, beside) and comparison.goal()
    ]
    assert goal == GOALS[name, subject, beside, bound]


def test_benchmarks_can_be_listed():
    done = suite("--list")
    assert done.returncode == 0
    assert {line.split()[0] for line in done.stdout.splitlines()} >= set(SPECIFIED)


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--only", "massage"), ("--pairs", "none"), ("--pairs", "0"), ("--pairs", "²")),
        *(("--output", "/proc/x"), ("--output", "/proc"), ("--output", __file__)),
    ],
)
def test_wrong_argument_is_named_with_what_would_be_right(arguments):
    done = suite(*arguments)
    assert done.returncode == 2
    assert arguments[1] in done.stderr
    assert "Traceback" not in done.stderr
    remedy = {"--only": "message", "--pairs": "a number of turns", "--output": "a folder that can be written to"}
    assert remedy[arguments[0]] in done.stderr


# One subject beside another


def samples(**values):
    return {subject: {"ns": figures} for subject, figures in values.items()}


def test_pairs_decide_and_not_the_medians_of_each_side():
    drifting = [100.0 * 2**turn for turn in range(9)]
    values = samples(ours=[1.1 * value for value in drifting], bare=drifting)
    result = Comparison("ns", "ours", "bare", most=1.2).result(values)
    assert (result.low, result.median, result.high) == pytest.approx((1.1, 1.1, 1.1))
    assert result.verdict == "reached"


@pytest.mark.parametrize(
    ("goal", "by", "verdict"),
    [
        ({"most": 1.2}, "ratio", "reached"),
        ({"most": 1.05}, "ratio", "refused"),
        ({"most": 0.9}, "ratio", "missed"),
        ({"least": 0.9}, "ratio", "reached"),
        ({"least": 1.05}, "ratio", "refused"),
        ({"least": 1.2}, "ratio", "missed"),
        ({"most": 20}, "difference", "reached"),
        ({"most": -10}, "difference", "missed"),
        ({}, "ratio", "no difference seen"),
        ({}, "difference", "no difference seen"),
    ],
)
def test_goal_inside_of_the_spread_is_refused(goal, by, verdict):
    values = samples(ours=[96, 97, 98, 99, 104, 108, 110, 112, 96.5], bare=[100] * 9)
    assert Comparison("ns", "ours", "bare", by=by, **goal).result(values).verdict == verdict


def test_refused_result_says_so_in_the_table():
    benchmark = Benchmark("A", [Comparison("ns", "ours", "bare", most=1.05)])
    values = samples(ours=[96, 97, 98, 99, 104, 108, 110, 112, 96.5], bare=[100] * 9)
    measured = Measured(benchmark, values, {})
    assert any("the spread is wider than the difference" in line for line in report.table("a", measured))


def test_instructions_counted_stand_beside_the_server_time():
    benchmark = Benchmark("x", [Comparison(figure, "a", "b") for figure in ("a second", "server us")])
    times, counts = {"a second": [2.0] * 7, "server us": [1.0] * 7}, {"server instructions": [3.0] * 7}
    for one, and_instructions in ((times, []), (times | counts, ["server instructions"])):
        results = Measured(benchmark, {"a": one, "b": one}, {}).results()
        assert [result.of.figure for result in results] == ["a second", "server us", *and_instructions]


def test_too_few_pairs_are_not_judged():
    result = Comparison("ns", "ours", "bare", most=2).result(samples(ours=[1] * 6, bare=[1] * 6))
    assert result.verdict == "too few pairs"


def test_result_without_a_baseline_is_taken_as_it_is():
    result = Comparison("ns", "ours", most=5).result(samples(ours=[4, 1, 2, 3, 4, 2, 3]))
    assert (result.median, result.verdict) == (3, "reached")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_interval_holds_the_median_and_is_made_of_the_sample(values):
    low, high = interval(values)
    assert low in values
    assert high in values
    assert low <= sorted(values)[len(values) // 2] <= high


@pytest.mark.parametrize(("count", "outside"), [(5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (20, 5), (41, 13)])
def test_interval_is_that_of_the_binomial_distribution(count, outside):
    """As tables of the sign test have it."""
    assert interval(range(count)) == (outside, count - 1 - outside)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.5, "1.50"), (42.19, "42.2"), (12345.6, "12 346"), (-3, "-3.00")],
)
def test_numbers_have_three_digits_that_count(value, text):
    assert number(value) == text


# A run


@pytest.fixture
def run(tmp_path):
    return Run(quick=True, folder=tmp_path)


def benchmark_of(order, *names, **options):
    benchmark = Benchmark("A", **options)
    for name in names:

        @benchmark.subject(name)
        @contextlib.contextmanager
        def subject(run, name=name):
            order.append(f"<{name}")
            yield lambda: order.append(name) or {"ns": len(order)}
            order.append(f"{name}>")

    return benchmark


def test_subjects_take_turns_and_the_first_does_not_count(run):
    order, shares = [], []
    run.quick, run.pairs = False, 3
    measured = benchmark_of(order, "a", "b").measure(run, shares.append)
    assert order == ["<a", "<b", *"ab", *"ba", *"ab", *"ba", "b>", "a>"]
    assert measured.samples == {"a": {"ns": [6, 7, 10]}, "b": {"ns": [5, 8, 9]}}
    assert sum(shares) == pytest.approx(1)


def test_short_turns_are_many_but_in_a_quick_run(tmp_path):
    benchmark = benchmark_of([], "a", short_turns=3)
    for quick, count in ((False, 6), (True, 2)):
        measured = benchmark.measure(Run(quick=quick, folder=tmp_path, pairs=2))
        assert len(measured.samples["a"]["ns"]) == count


def test_benchmark_without_warm_up_is_not_warmed_up(run):
    for warms_up, run.quick in ((False, False), (True, True)):
        order = []
        run.pairs = 1
        benchmark_of(order, "a", warms_up=warms_up).measure(run)
        assert order == ["<a", "a", "a>"]


def test_peer_that_is_not_installed_is_left_out_and_named(run):
    benchmark = benchmark_of([], "ours", "bare", comparisons=[Comparison("ns", "ours", "bare")])

    @benchmark.subject("peer")
    @contextlib.contextmanager
    def peer(run):
        import no_such_peer

        yield no_such_peer

    benchmark.comparisons.append(Comparison("ns", "ours", "peer"))
    measured = benchmark.measure(run)
    assert "no_such_peer" in measured.left_out["peer"]
    assert [result.of.beside for result in measured.results()] == ["bare"]
    assert any(line.startswith("Left out: peer: ") for line in report.table("a", measured))


def test_benchmark_of_which_nothing_remains_says_why(run):
    benchmark = Benchmark("A")

    @benchmark.subject("jq")
    @contextlib.contextmanager
    def subject(run):
        raise Unfit("jq is missing")
        yield

    with pytest.raises(Unfit, match="jq: jq is missing"):
        benchmark.measure(run)


def test_sum_that_is_wrong_ends_the_benchmark_and_clears_up(run):
    order = []
    benchmark = benchmark_of(order, "a")

    @benchmark.subject("b")
    @contextlib.contextmanager
    def subject(run):
        def turn():
            raise AssertionError("997 of 1000")

        yield turn

    with pytest.raises(AssertionError, match="997 of 1000"):
        benchmark.measure(run)
    assert order[0] == "<a"


def test_too_few_file_descriptors_are_said_with_the_remedy(run):
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(Unfit, match=rf"{allowed + 1} open files.*ulimit -n {allowed + 1}"):
        run.needs_files(allowed + 1)


def test_load_generator_s_sockets_count_too(run):
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with run.stack, live.served(run, "bare_echo") as server:
        run.load.open("a", server.url, 3)
        run.needs_files(allowed - 3)
        with pytest.raises(Unfit, match=f"needs {allowed + 1} open files"):
            run.needs_files(allowed - 2)


def test_open_files_soft_limit_is_raised_for_all_processes(output):
    """The load generator of ``echo`` holds 4 x (50 + 100) sockets at once, and the run began with a limit of 300."""
    folder, done = output
    assert json.loads((folder / "results.json").read_text())["benchmarks"]["echo"]["left_out"] == {}
    assert "open files" not in done.stderr


def test_server_that_cannot_start_says_why_itself(run):
    with (
        pytest.raises(ChildProcessError, match="No module named no_such_server|no_such_app"),
        live.served(run, "no_such_app"),
    ):
        pass


def test_client_that_saw_something_else_is_a_wrong_sum(run):
    with run.stack, live.served(run, "reject_by_hand") as server, pytest.raises(AssertionError, match="not all.*403"):
        live.knocked(run, server, 1013)


def test_module_with_a_benchmark_is_found():
    assert named("message").about
    assert "import" in names()


@pytest.mark.parametrize("module", ["matplotlib", "picows", "psutil", "rich", "uvloop"])
def test_missing_needs_of_the_suite_are_named_with_the_remedy(module):
    done = suite("--list", after=hiding(module))
    assert done.stderr == f"the benchmarks need {module}: pip install -e '.[benchmark]'\n"


def test_peers_not_installed_are_left_out_and_nothing_else(tmp_path):
    done = suite(
        *("--quick", "--only", "admit", "--only", "message", "--output", str(tmp_path)),
        after=hiding("limits", "opentelemetry", "prometheus_client", "websockets"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["benchmarks"]
    assert {name: [*benchmark["left_out"]] for name, benchmark in found.items()} == {
        "admit": ["limits"],
        "message": ["OpenTelemetry"],
    }
    assert found["admit"]["samples"].keys() >= {"MaxSessions", "aiolimiter"}
    for text in (done.stdout, (tmp_path / "results.md").read_text()):
        assert "Left out: limits: there is no module limits: pip install" in text
    assert "Left out: admit, limits: there is no module limits: pip install" in done.stderr


def test_program_that_is_missing_is_a_peer_that_is_left_out(tmp_path):
    done = suite("--quick", "--only", "reader", "--output", str(tmp_path), env=os.environ | {"PATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "Left out: jq: jq is missing: apt-get install jq" in done.stdout
    assert "| errors |" in done.stdout


def test_benchmark_whose_module_needs_what_is_missing_says_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "tests.benchmarks.shed", raising=False)
    monkeypatch.setitem(sys.modules, "tests.benchmarks.harness.inside", None)
    with pytest.raises(Unfit, match="there is no module tests.benchmarks.harness.inside"):
        named("shed")


def test_result_that_is_no_number_is_a_wrong_sum(run):
    benchmark = benchmark_of([], "a")

    @benchmark.subject("b")
    @contextlib.contextmanager
    def subject(run):
        yield lambda: {"ns": math.nan}

    with pytest.raises(AssertionError, match="ns of b is nan"):
        benchmark.measure(run)


def test_every_comparison_is_of_subjects_that_exist():
    for name in names():
        benchmark = named(name)
        for comparison in benchmark.comparisons:
            assert comparison.needs() <= benchmark.subjects.keys(), (name, comparison)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("123456,,instructions:u,1000,100.00,,\n", 123456.0),
        ("<not supported>,,instructions:u,0,100.00,,\n", None),
        ("# started on Wed\n\n987,,instructions:u,1,1.0,,", 987.0),
        ("perf: command failed", None),
        ("", None),
    ],
)
def test_instructions_are_read_from_what_perf_writes(text, count):
    assert live.instructions_in(text) == count
