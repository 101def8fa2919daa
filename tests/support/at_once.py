"""Cases that wait more than they work, at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor


def at_once(calls: Mapping[str, Callable[[], object]]) -> None:
    """Make all calls, in a thread each.

    :raises BaseException: what they raised, with the names of the calls.
    """
    with ThreadPoolExecutor(len(calls)) as pool:
        made = {name: pool.submit(call) for name, call in calls.items()}
    failures = []
    for name, one in made.items():
        if (failure := one.exception()) is not None:
            failure.add_note(f"on {name}")
            failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} of {len(calls)}", failures)
