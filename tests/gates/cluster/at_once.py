"""Cases that wait for leases to end run at the same time: each has a server, gates and an event loop of its own."""

import asyncio
import contextlib
import functools
import inspect
import itertools

from tests.support import at_once as support
from tests.support.programs import program
from tests.support.redis import binaries, running

from .processes import Processes

OWN = {"processes", "server", "binary", "tmp_path"}


def at_once(**values):
    """Have an async test run with each combination of ``values``, in threads.

    It may ask for these, for ``processes``, for a ``server`` and for a ``tmp_path``, which are its own. ``binary`` is
    given by its name, and is that of the ``server``.
    """

    def decorate(test):
        wanted = inspect.signature(test).parameters
        shared = [one for name, one in wanted.items() if name not in OWN | values.keys()]
        folder = inspect.Parameter("tmp_path", inspect.Parameter.KEYWORD_ONLY)

        @functools.wraps(test)
        def run(tmp_path, **given):
            calls = {}
            for number, combination in enumerate(itertools.product(*values.values())):
                case = dict(zip(values, combination, strict=True))
                if "binary" in case:
                    case["binary"] = binaries()[case["binary"]] or program(case["binary"])
                (own_path := tmp_path / str(number)).mkdir()
                calls[str(combination)] = functools.partial(_run, test, wanted, {**given, **case, "tmp_path": own_path})
            support.at_once(calls)

        run.__signature__ = inspect.Signature([*shared, folder])
        return run

    return decorate


def _run(test, wanted, given):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            if "server" in wanted:
                given["server"] = stack.enter_context(running(given.get("binary")))
            if "processes" in wanted:
                given["processes"] = await stack.enter_async_context(Processes())
            await test(**{name: given[name] for name in wanted})

    asyncio.run(main())
