"""What somebody sees who got it wrong, on the screen of the server, with no logging configured."""

import pytest

from tests.support.peers import Raw, wait_until
from tests.support.servers import SETUPS, serve

WITH_LIFESPAN = [setup for setup in SETUPS if setup != "daphne"]


@pytest.mark.parametrize("setup", WITH_LIFESPAN)
def test_setting_given_to_the_middleware_stops_the_server(setup, tmp_path):
    try:
        with serve(setup, "tests.live.servers.mistaken:misplaced", tmp_path) as running:
            running.process.wait(10)  # hypercorn listens first, and starts the application then
            log = running.log()
    except ChildProcessError as failed:
        log = str(failed)
    assert "CloseCodeMiddleware takes no max_sessions: settings go into settings=Settings(max_sessions=5)" in log


def test_guard_that_is_forgotten_is_told(setup, tmp_path):
    with serve(setup, "tests.live.servers.mistaken:forgotten", tmp_path) as running:
        with Raw(running, "/") as first, Raw(running, "/") as second:
            assert (first.answer(), second.answer()) == (101, 101)
        told = "Guard(max_sessions=1) has no effect: no CloseCodeMiddleware has this guard: give it to one, as"
        assert wait_until(lambda: told in running.log())
