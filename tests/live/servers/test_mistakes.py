"""What somebody sees who got it wrong, on the screen of the server, with no logging configured."""

import functools

from tests.support.at_once import at_once
from tests.support.peers import Raw, wait_until
from tests.support.servers import SETUPS, serve

from .at_once import on_each, serve_all

WITH_LIFESPAN = [setup for setup in SETUPS if setup != "daphne"]


def test_setting_given_to_the_middleware_stops_the_server(tmp_path):
    def check(setup):
        try:
            with serve(setup, "tests.live.servers.mistaken:misplaced", tmp_path) as running:
                running.process.wait(10)  # hypercorn listens first, and starts the application then
                log = running.log()
        except ChildProcessError as failed:
            log = str(failed)
        assert "CloseCodeMiddleware takes no max_sessions: settings go into settings=Settings(max_sessions=5)" in log

    at_once({setup: functools.partial(check, setup) for setup in WITH_LIFESPAN})


def test_guard_that_is_forgotten_is_told(tmp_path):
    def check(running):
        with Raw(running, "/") as first, Raw(running, "/") as second:
            assert (first.answer(), second.answer()) == (101, 101)
        told = "Guard(max_sessions=1) has no effect: no CloseCodeMiddleware has this guard: give it to one, as"
        assert wait_until(lambda: told in running.log())

    with serve_all("tests.live.servers.mistaken:forgotten", tmp_path) as servers:
        on_each(servers, check)
