"""What a user writes: one line, and the environment."""

import functools
import time

import pytest

from tests.support import at_once as support
from tests.support.peers import Raw, connect
from tests.support.servers import SETUPS, serve

from .at_once import at_once, serve_all


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    env = {"CLOSECODES_MAX_SESSIONS": "1", "CLOSECODES_MAX_SESIONS_PER_CLIENT": "7"}
    folder = tmp_path_factory.mktemp("frameworks")
    with serve_all("tests.live.servers.together:app", folder, env=env) as servers:
        yield servers


def alone(server, path, **options):
    """Connect when nobody else holds the one place any more."""
    deadline = time.monotonic() + 5
    while (seen := connect(server, path, **options)).code in {1013, 4013} and time.monotonic() < deadline:
        time.sleep(0.02)
    return seen


@at_once
def test_one_line_and_one_variable_limit_the_sessions(server, daphne):
    with Raw(server, "/echo/a") as peer:
        assert peer.answer() == 101
        peer.send(1, b"x")
        assert peer.frame() == (1, b"x")
        assert connect(server, "/echo/a").code == (4013 if daphne else 1013)
    assert alone(server, "/echo/a", say="x", patience=0.3).open


@at_once
def test_misspelt_variable_is_a_warning_with_the_right_name(server):
    for path in ("/violate/a", "/fastapi/nowhere"):  # FastAPI makes its guard when it is first asked for something
        assert alone(server, path)
    records = server.wait_for_records(3, event__name="closecodes.config.unknown")
    assert len(records) == 3, "once for each guard"
    assert all(one["message"].endswith("did you mean CLOSECODES_MAX_SESSIONS_PER_CLIENT?") for one in records)


@pytest.mark.parametrize(
    ("path", "seen", "by_daphne"),
    [
        ("/violate/a", "1008 policy", "4008"),
        ("/forbid_late/a", "1008 403 Forbidden", "4008"),
        ("/refuse/a", "HTTP 404", "HTTP 403"),
        ("/nowhere", "HTTP 403", "HTTP 403"),
    ],
)
@at_once
def test_starlette_closes_by_itself(server, daphne, path, seen, by_daphne):
    assert str(alone(server, path)) == (by_daphne if daphne else seen)


@pytest.mark.parametrize(("path", "route"), [("/crash/a", "/crash/{name}"), ("/below/crash/a", "/below/crash/{name}")])
@at_once
def test_record_has_the_template_of_the_route(server, path, route):
    assert alone(server, path).code == 1011
    [record] = server.wait_for_records(1, url__path=path, level="error")
    assert record["http.route"] == route


@at_once
def test_disconnect_that_escapes_is_no_error(server):
    with Raw(server, "/leave/a") as peer:
        assert peer.answer() == 101
    assert alone(server, "/violate/a")
    assert server.records(url__path="/leave/a", level="error") == []


@at_once
def test_fastapi_s_validation_is_a_close_that_arrives(server, daphne):
    assert alone(server, "/fastapi/number/a?n=7").received == ("7",)
    assert alone(server, "/fastapi/number/a?n=7").code == 1000
    assert str(alone(server, "/fastapi/number/a?n=x")) == "HTTP 403"
    seen = alone(server, "/fastapi/crash/b")
    assert seen.code == 1011
    [record] = server.wait_for_records(1, level="error", url__path="/crash/b")
    assert record["http.route"] == "/crash/{name}"
    assert daphne or record["closecodes.error.id"] == seen.ref


@at_once
def test_on_one_mount_only_no_lifespan_arrives_and_all_works(server, daphne):
    assert daphne or alone(server, "/mounted/guarded/crash/a").ref
    assert alone(server, "/mounted/unguarded").reason == ""


BAD = {"CLOSECODES_MAX_SESSIONS": "-3", "CLOSECODES_REJECT_WITH": "maybe"}


def test_unusable_settings_are_all_named_before_serving(tmp_path):
    names = ("CLOSECODES_MAX_SESSIONS", "'-3'", "CLOSECODES_REJECT_WITH", "'maybe'", "'auto', 'close' or 'http'")

    def check(setup):
        try:
            with serve(setup, "tests.live.servers.frameworks:starlette", tmp_path, env=BAD) as running:
                if setup == "daphne":  # knows no lifespan, and so it starts; nothing is served
                    assert connect(running, "/echo/a").code == 1011
                else:
                    running.process.wait(10)  # hypercorn listens first, and starts the application then
                log = running.log()
        except ChildProcessError as failed:
            log = str(failed)
        for name in names:
            assert name in log

    support.at_once({setup: functools.partial(check, setup) for setup in SETUPS})
