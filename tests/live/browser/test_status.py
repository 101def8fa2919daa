"""The page of StatusApp in Chromium."""

import contextlib

import pytest
import websockets.exceptions
import websockets.sync.client
from playwright.sync_api import expect

from tests.support.servers import serve

OPERATOR = {"extra_http_headers": {"authorization": "Bearer secret"}}


@pytest.fixture
def server(tmp_path):
    with serve("uvicorn-sansio", "tests.live.browser.status_app:app", tmp_path, forked=True) as running:
        yield running


@pytest.fixture
def sessions(server):
    """Open sessions, and one that crashed."""
    with contextlib.ExitStack() as stack:
        connect = websockets.sync.client.connect
        opened = [stack.enter_context(connect(server.url + "/stay", proxy=None)) for _ in range(2)]
        with (
            connect(server.url + "/crash/1", proxy=None) as crashed,
            pytest.raises(websockets.exceptions.ConnectionClosed),
        ):
            crashed.recv(timeout=10)
        yield opened


def view(server):
    return server.url.replace("ws", "http", 1) + "/status/view"


def test_person_sees_what_is_going_on_and_drains(server, sessions, new_page):
    page = new_page(**OPERATOR)
    page.goto(view(server))
    expect(page.locator("#sessions")).to_have_text("2")
    expect(page.locator("#limit")).to_have_text("of 3")
    expect(page.locator("#state")).to_contain_text("serving")
    expect(page.locator("#closes tbody tr")).to_have_text(["1011 error1"])
    expect(page.locator("#errors tbody tr td").first).to_contain_text("<img src=x onerror=alert(1)>")
    expect(page.locator("#errors tbody tr td").nth(1)).to_have_text("/crash/{b}")
    expect(page.get_by_role("row", name="max_sessions 2 3")).to_be_visible()
    assert page.locator("main img").count() == 0

    sessions.pop().close()
    expect(page.locator("#sessions")).to_have_text("1")
    ceiling, line = (page.locator(part).bounding_box() for part in ("#ceiling", "#line"))
    assert ceiling["y"] < line["y"] + line["height"]  # the limit is above

    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Drain this process").click()
    with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
        sessions[0].recv(timeout=10)
    assert closed.value.rcvd.code == 1012
    expect(page.locator("#state")).to_contain_text("drained")
    expect(page.get_by_role("button")).to_be_disabled()


def test_closes_with_iana_codes_are_named(server, new_page):
    for code in (3000, 3003, 3008):
        with (
            websockets.sync.client.connect(f"{server.url}/close/{code}", proxy=None) as closed,
            pytest.raises(websockets.exceptions.ConnectionClosed),
        ):
            closed.recv(timeout=10)
    page = new_page(**OPERATOR)
    page.goto(view(server))
    rows = ["3000 unauthorized1", "3003 forbidden1", "3008 timeout1"]
    expect(page.locator("#closes tbody tr")).to_have_text(rows)


def test_drain_has_to_be_confirmed(server, sessions, new_page):
    page = new_page(**OPERATOR)
    page.goto(view(server))
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button").click()
    page.reload()
    expect(page.locator("#state")).to_contain_text("serving")


def test_status_page_says_when_nobody_answers(server, new_page):
    page = new_page(**OPERATOR, tolerated="ERR_CONNECTION_REFUSED|503")
    page.goto(view(server))
    expect(page.locator("#state")).to_contain_text("serving")
    page.route("**/status/", lambda route: route.fulfill(status=503))
    expect(page.locator("#state")).to_contain_text("No answer from the server: 503")
    page.unroute("**/status/")
    expect(page.locator("#state")).to_contain_text("serving")


def test_status_page_is_light_or_dark_and_fits_a_phone(server, sessions, new_page):
    papers = []
    for scheme in ("light", "dark"):
        page = new_page(**OPERATOR, color_scheme=scheme, viewport={"width": 400, "height": 800})
        page.goto(view(server))
        expect(page.locator("#sessions")).to_have_text("2")
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert papers == ["rgb(246, 247, 248)", "rgb(20, 23, 26)"]


def test_unauthorized_see_nothing(server, new_page):
    page = new_page(tolerated="403")
    assert page.goto(view(server)).status == 403
    assert page.locator("body").inner_text() == "Forbidden"


def test_another_site_cannot_drain(server, sessions, new_page):
    page = new_page(**OPERATOR, tolerated="403")  # as if the operator were logged in by a cookie
    page.route("http://evil.test/", lambda route: route.fulfill(body="<title>evil</title>", content_type="text/html"))
    page.goto("http://evil.test/")
    with page.expect_navigation():
        page.evaluate(
            """(url) => {
              const form = Object.assign(document.createElement("form"), { method: "post", action: url });
              document.body.append(form);
              form.submit();
            }""",
            server.url.replace("ws", "http", 1) + "/status/drain",
        )
    assert page.locator("body").inner_text() == "Forbidden"
    page.goto(view(server))
    expect(page.locator("#state")).to_contain_text("serving")
    expect(page.locator("#sessions")).to_have_text("2")
