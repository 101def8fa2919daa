"""One headless Chromium for all tests of this package; what a page complains of fails its test."""

import re

import pytest

from tests.support.chromium import chromium


# Not for the session: playwright has an event loop that runs in this thread, where other packages' tests run theirs.
@pytest.fixture(scope="package")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def new_page(browser):
    """Open a page, with options of its context (``color_scheme="dark"``, ``viewport=``); console errors fail the test.

    ``tolerated`` is a pattern of errors that belong to the test: Chromium reports each handshake that failed.
    """
    contexts, problems = [], []

    def new_page(*, tolerated=None, **options):
        contexts.append(context := browser.new_context(**options))

        def complain(text):
            if tolerated is None or not re.search(tolerated, text):
                problems.append(text)

        page = context.new_page()
        page.on("console", lambda message: complain(message.text) if message.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: complain(f"uncaught: {error}"))
        return page

    yield new_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(new_page):
    return new_page()
