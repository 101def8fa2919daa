"""What a framework answers by itself stays its answer, and no crash hides."""

import pytest

from tests.support.peers import connect
from tests.support.programs import module


@pytest.fixture(scope="module")
def litestar(application):
    module("litestar")
    return application("litestar.both")


@pytest.fixture(scope="module", params=["both", "both_debug"])
def quart(request, application):
    """In debug mode Quart has its exceptions travel on, too."""
    module("quart")
    return application(f"quart.{request.param}")


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("/violated", "4002 its own"),
        ("/own", "4500 of the handler"),
        ("/nowhere", "HTTP 403"),
        ("/echo/more", "HTTP 403"),
    ],
)
def test_litestar_answer_of_its_own_stays(litestar, path, seen):
    assert str(connect(litestar, path)) == str(connect(litestar, f"/bare{path}")) == seen
    assert connect(litestar, "/crash/7").ref
    assert litestar.records(url__path=path, level="error") == litestar.records(url__path=path, level="warning") == []


def test_litestar_error_close_is_one_warning(litestar):
    assert str(connect(litestar, "/forbidden")) == str(connect(litestar, "/bare/forbidden")) == "4500 log in"
    [record] = litestar.wait_for_records(1, url__path="/forbidden")
    assert (record["event.name"], record["level"]) == ("closecodes.session.closed_with_error", "warning")
    assert (record["http.route"], record["websocket.close.code"]) == ("/forbidden", 4500)


@pytest.mark.parametrize(
    ("path", "route"),
    [("/internal", "/internal"), ("/of/crash/7", "/of/crash/{name}"), ("/below/7", None)],
)
def test_litestar_failure_is_one_record_with_its_route(litestar, path, route):
    seen = connect(litestar, path)
    assert seen.code == 1011
    [record] = litestar.wait_for_records(1, closecodes__error__id=seen.ref)
    assert record.get("http.route") == route
    assert connect(litestar, "/crash/7").ref
    assert len(litestar.records(closecodes__session__id=record["closecodes.session.id"])) == 1


@pytest.mark.parametrize(
    ("path", "seen"), [("/refused", "HTTP 401"), ("/handled", "4004 of the application"), ("/nowhere", "HTTP 404")]
)
def test_quart_answer_of_its_own_stays(quart, path, seen):
    assert str(connect(quart, path)) == str(connect(quart, f"/bare{path}")) == seen
    assert quart.records(url__path=path, level="error") == []


def test_quart_failure_is_one_record_with_its_route(quart):
    seen = connect(quart, "/of/crash/7")
    assert seen.code == 1011
    [record] = quart.wait_for_records(1, closecodes__error__id=seen.ref)
    assert record["http.route"] == "/of/crash/<int:number>"
    assert connect(quart, "/crash/7").ref
    assert len(quart.records(closecodes__session__id=record["closecodes.session.id"])) == 1
