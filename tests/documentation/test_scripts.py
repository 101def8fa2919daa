"""HTML and JavaScript of the pages run in Chromium."""

import pytest

from tests.support.chromium import chromium

from .browser import broken_script
from .pages import Block, pages

SCRIPTS = [block for page in pages() for block in page.blocks if block.language in {"html", "js"}]


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("block", SCRIPTS, ids=str)
def test_script_runs_in_a_browser(block, browser):
    assert list(broken_script(block, browser)) == []


@pytest.mark.parametrize(
    ("language", "source", "problem"),
    [
        ("html", "<script>\nlet = 1 +;\n</script>", "README.md:5: Uncaught SyntaxError"),
        (
            "html",
            '<script type="module">\n  import { Sockets } from "/reconnecting-websocket.js";\n</script>',
            "README.md:5: Uncaught SyntaxError",
        ),
        ("js", "\nnobody.knows", "README.md:5: Uncaught ReferenceError: nobody is not defined"),
        ("js", "Promise.reject(new TypeError('nobody waits'))", "README.md:4: TypeError: nobody waits"),
        ("js", "await Promise.reject(new TypeError('no'))", "README.md:4: Uncaught TypeError: no"),
    ],
)
def test_bad_script_is_named_with_its_line(language, source, problem, browser):
    [seen] = broken_script(Block.only(language, source), browser)
    assert seen.startswith(problem)
