"""Tests that wait more than they work run on all servers at the same time: six in the time of the slowest."""

import contextlib
import functools
import inspect
import time
from concurrent.futures import ThreadPoolExecutor, wait

from tests.support import at_once as support
from tests.support.servers import SETUPS, serve


@contextlib.contextmanager
def serve_all(app, folder, setups=SETUPS, *, forked=True, **options):
    """Run ``app`` on each server, forked if not told else; yield what runs."""
    stacks = [contextlib.ExitStack() for _ in setups]
    with ThreadPoolExecutor(len(setups)) as pool:
        starting = [
            pool.submit(stack.enter_context, serve(setup, app, folder, forked=forked, **options))
            for stack, setup in zip(stacks, setups, strict=True)
        ]
        wait(starting)
        try:
            yield [started.result() for started in starting]
        finally:
            [*pool.map(contextlib.ExitStack.close, stacks)]


def on_each(servers, call):
    """Call ``call`` with each server, in threads."""
    support.at_once({server.setup: functools.partial(call, server) for server in servers})


def _news(server):
    """Return a function that says what the server's process has written since the test began."""
    # What it has to say of earlier tests may come late: daphne looks once a second at how its applications ended.
    before = -1
    while before != (before := len(server.log())):
        time.sleep(1.5 if server.setup == "daphne" else 0.2)
    return lambda: server.log()[before:]


def at_once(test=None, *, setups=SETUPS):
    """Have ``test`` run on each of the fixture ``servers``, in threads.

    It may ask for ``server``, its ``setup``, whether that is ``daphne``, the ``news`` of its log, and for ``holding``,
    which ends what it holds with the test; whatever else it asks for, all share.
    """
    if test is None:
        return functools.partial(at_once, setups=setups)
    wanted = inspect.signature(test).parameters
    shared = [one for name, one in wanted.items() if name not in {"server", "setup", "daphne", "news", "holding"}]

    @functools.wraps(test)
    def run(servers, **given):
        def call(server):
            with contextlib.ExitStack() as holding:
                own = {"server": server, "setup": server.setup, "daphne": server.setup == "daphne", "holding": holding}
                if "news" in wanted:
                    own["news"] = _news(server)
                test(**given, **{name: one for name, one in own.items() if name in wanted})

        on_each([server for server in servers if server.setup in setups], call)

    servers = inspect.Parameter("servers", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([servers, *shared])
    return run


def cases_at_once(names, cases):
    """Have a test run with all ``cases``, in threads, where ``parametrize`` would run one after the other.

    Each has a ``tmp_path`` of its own, and ``holding``, which ends what it holds with the case.
    """

    def decorate(test):
        wanted = inspect.signature(test).parameters

        def call(case, tmp_path):
            tmp_path.mkdir()
            with contextlib.ExitStack() as holding:
                own = {"tmp_path": tmp_path, "holding": holding} | dict(zip(names, case, strict=True))
                test(**{name: own[name] for name in wanted})

        @functools.wraps(test)
        def run(tmp_path):
            numbered = enumerate(cases)
            support.at_once({repr(case): functools.partial(call, case, tmp_path / str(at)) for at, case in numbered})

        run.__signature__ = inspect.signature(lambda tmp_path: None)
        return run

    return decorate
