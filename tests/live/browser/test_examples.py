"""The examples of the client's page at a real server: they keep what is said, and do not replace each other for ever."""

import json
import urllib.request
from importlib.resources import files

import pytest

from tests.documentation.pages import pages
from tests.support.peers import wait_until
from tests.support.servers import serve

MODULE = files("asgi_closecodes.client") / "reconnecting-websocket.js"
TOLERATED = "WebSocket connection to .* failed|already in CLOSING"
"""A page that speaks when it is open may do so when a full server's close has come already."""


@pytest.fixture
def server(tmp_path):
    with serve("uvicorn-sansio", "tests.live.browser.examples_app:app", tmp_path, forked=True) as running:
        yield running


@pytest.fixture
def run(new_page, server):
    """Run the example below a heading in a page of its own; return the page."""

    def run(heading):
        [source] = [
            block.source
            for page in pages()
            for block in page.blocks
            if page.name == "asgi_closecodes/client/README.md"
            and block.language == "js"
            and block.headings[-1] == heading
        ]
        # What it knows, for the test to see.
        source += "\nglobalThis.example = { socket, closes: [] };"
        source += "\nsocket.addEventListener('close', ({ code }) => example.closes.push(code));"
        if "export function say" in source:
            source += "\nObject.assign(example, { say, unanswered });"
        page = new_page(tolerated=TOLERATED)
        module = MODULE.read_text(encoding="utf-8")
        page.route("**/example.js", lambda route: route.fulfill(body=source, content_type="text/javascript"))
        page.route(f"**/{MODULE.name}", lambda route: route.fulfill(body=module, content_type="text/javascript"))
        page.goto(server.url.replace("ws", "http", 1) + "/page")
        page.wait_for_function("globalThis.example")
        return page

    return run


def ask(server, path):
    with urllib.request.urlopen(server.url.replace("ws", "http", 1) + path, timeout=10) as response:
        return json.load(response)


def test_message_is_kept_until_a_full_server_has_room(run, server):
    page = run("Keep what you send")
    page.evaluate("example.say('hello')")
    page.wait_for_function("example.closes.length > 1", timeout=20_000)
    assert page.evaluate("[example.closes[0], example.unanswered.size]") == [1013, 1]
    ask(server, "/admit")
    page.wait_for_function("example.unanswered.size === 0", timeout=20_000)
    page.evaluate("example.say('you')")
    page.wait_for_function("example.unanswered.size === 0", timeout=20_000)
    assert ask(server, "/state")["heard"] == [{"id": 1, "text": "hello"}, {"id": 2, "text": "you"}]


def test_page_that_is_replaced_stays_away(run, server):
    ask(server, "/admit")
    first = run("Replaced")
    wait_until(lambda: ask(server, "/state")["sessions"] == 1)
    second = run("Replaced")
    first.wait_for_function("example.closes.at(-1) === 1013", timeout=20_000)
    assert first.evaluate("example.socket.state") == "closed"
    assert "another window" in first.inner_text("body")
    second.wait_for_function("example.socket.state === 'open'", timeout=20_000)
    assert second.evaluate("example.closes") == []
