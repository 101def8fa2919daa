"""What an idle session keeps in memory on live uvicorn: a server is started, filled and thrown away each turn."""

from contextlib import contextmanager

from .harness.live import check_installed, served
from .harness.paired import Comparison
from .harness.suite import Benchmark

KIB = "KiB a session"
BENCHMARK = Benchmark(
    "Memory of idle sessions on live uvicorn",
    [
        Comparison(KIB, "middleware", "bare", by="difference", most=1.6),
        Comparison(KIB, "with metrics", "bare", by="difference"),
    ],
    pairs=7,
)


def _register(name, app):
    @BENCHMARK.subject(name)
    @contextmanager
    def subject(run):
        check_installed(app)
        sessions = run.size(10_000, 200)
        first = sessions // 10  # what is there once a process is paid for by these
        run.needs_files(sessions + 100)

        def turn():
            with served(run, app) as server:
                run.load.open(name, server.url, first)
                before = server.memory()
                run.load.open(name, server.url, sessions - first)
                used = server.memory() - before
                assert run.load.close(name) == {"open": sessions}
            return {KIB: used / (sessions - first) / 1024}

        yield turn


_register("bare", "bare_echo")
_register("middleware", "echo_limited")
_register("with metrics", "echo_measured")
