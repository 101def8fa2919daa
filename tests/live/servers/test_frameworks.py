"""What a user writes: one line, and the environment."""

import time

import pytest

from tests.support.peers import Raw, connect
from tests.support.servers import serve


@pytest.fixture(scope="module")
def starlette(setup, tmp_path_factory):
    env = {"CLOSECODES_MAX_SESSIONS": "1", "CLOSECODES_MAX_SESIONS_PER_CLIENT": "7"}
    with serve(
        setup, "tests.live.servers.frameworks:starlette", tmp_path_factory.mktemp("starlette"), env=env
    ) as running:
        yield running


@pytest.fixture
def daphne(setup):
    return setup == "daphne"


def alone(running, path, **options):
    """Connect when nobody else holds the one place any more."""
    deadline = time.monotonic() + 5
    while (seen := connect(running, path, **options)).code in {1013, 4013} and time.monotonic() < deadline:
        time.sleep(0.02)
    return seen


def test_one_line_and_one_variable_limit_the_sessions(starlette, daphne):
    with Raw(starlette, "/echo/a") as peer:
        assert peer.answer() == 101
        peer.send(1, b"x")
        assert peer.frame() == (1, b"x")
        assert connect(starlette, "/echo/a").code == (4013 if daphne else 1013)
    assert alone(starlette, "/echo/a", say="x", patience=0.3).open


def test_misspelt_variable_is_a_warning_with_the_right_name(starlette):
    assert alone(starlette, "/violate/a")
    [record] = starlette.wait_for_records(1, event__name="closecodes.config.unknown")
    assert record["message"].endswith("did you mean CLOSECODES_MAX_SESSIONS_PER_CLIENT?")


@pytest.mark.parametrize(
    ("path", "seen", "by_daphne"),
    [
        ("/violate/a", "1008 policy", "4008"),
        ("/forbid_late/a", "1008 403 Forbidden", "4008"),
        ("/refuse/a", "HTTP 404", "HTTP 403"),
        ("/nowhere", "HTTP 403", "HTTP 403"),
    ],
)
def test_starlette_closes_by_itself(starlette, daphne, path, seen, by_daphne):
    assert str(alone(starlette, path)) == (by_daphne if daphne else seen)


@pytest.mark.parametrize(("path", "route"), [("/crash/a", "/crash/{name}"), ("/below/crash/a", "/below/crash/{name}")])
def test_record_has_the_template_of_the_route(starlette, path, route):
    assert alone(starlette, path).code == 1011
    [record] = starlette.wait_for_records(1, url__path=path, level="error")
    assert record["http.route"] == route


def test_disconnect_that_escapes_is_no_error(starlette):
    with Raw(starlette, "/leave/a") as peer:
        assert peer.answer() == 101
    assert alone(starlette, "/violate/a")
    assert starlette.records(url__path="/leave/a", level="error") == []


def test_fastapi_s_validation_is_a_close_that_arrives(setup, daphne, tmp_path):
    with serve(setup, "tests.live.servers.frameworks:fastapi", tmp_path) as running:
        assert connect(running, "/number/a?n=7").received == ("7",)
        assert connect(running, "/number/a?n=7").code == 1000
        assert str(connect(running, "/number/a?n=x")) == "HTTP 403"
        seen = connect(running, "/crash/a")
        assert seen.code == 1011
        [record] = running.wait_for_records(1, level="error")
        assert record["http.route"] == "/crash/{name}"
        assert daphne or record["closecodes.error.id"] == seen.ref


def test_on_one_mount_only_no_lifespan_arrives_and_all_works(setup, daphne, tmp_path):
    with serve(setup, "tests.live.servers.mounted:app", tmp_path) as running:
        assert daphne or connect(running, "/guarded/crash/a").ref
        assert connect(running, "/unguarded").reason == ""


BAD = {"CLOSECODES_MAX_SESSIONS": "-3", "CLOSECODES_REJECT_WITH": "maybe"}


def test_unusable_settings_are_all_named_before_serving(setup, daphne, tmp_path):
    names = ("CLOSECODES_MAX_SESSIONS", "'-3'", "CLOSECODES_REJECT_WITH", "'maybe'", "'auto', 'close' or 'http'")
    if daphne:  # knows no lifespan, and so it starts; nothing is served
        with serve(setup, "tests.live.servers.frameworks:starlette", tmp_path, env=BAD) as running:
            assert connect(running, "/echo/a").code == 1011
            log = running.log()
    else:
        try:
            with serve(setup, "tests.live.servers.frameworks:starlette", tmp_path, env=BAD) as running:
                running.process.wait(10)  # hypercorn listens first, and starts the application then
                log = running.log()
        except ChildProcessError as failed:
            log = str(failed)
    for name in names:
        assert name in log
