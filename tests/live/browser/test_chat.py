"""The chat room, as two people see it."""

import itertools
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support.servers import serve

SCREENSHOTS = Path(__file__).parents[3] / "build" / "screenshots"

expect.set_options(timeout=20_000)  # a busy machine


@pytest.fixture
def chat(tmp_path):
    with serve("uvicorn-sansio", "demo_app.chat:app", tmp_path, forked=True) as running:
        yield running


def come_in(page, chat, name):
    page.goto(chat.url.replace("ws", "http", 1))
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Messages")).to_be_visible()
    return page


def test_two_people_a_third_tab_and_a_busy_database(chat, new_page):
    alice = come_in(new_page(), chat, "alice")
    second = come_in(alice.context.new_page(), chat, "alice")
    for page in (alice, second):
        expect(page.get_by_role("status")).to_have_text("signed in as alice")
    third = come_in(alice.context.new_page(), chat, "alice")
    expect(third.get_by_role("status")).to_have_text(
        re.compile(r"1013\s*try again later; retry_after=\d+\.\d; cause=client · again in \d+\.\d s")
    )
    third.close()

    bob = come_in(new_page(color_scheme="dark", viewport={"width": 400, "height": 800}), chat, "bob")
    bob.get_by_label("What you say").fill("hello")
    bob.keyboard.press("Enter")
    for page in (alice, second, bob):
        expect(page.get_by_label("Messages")).to_have_text("bobhello")

    for page in (alice, second):
        page.get_by_role("button", name="Slow query").click()
    turned_away = bob.get_by_role("status").filter(has_text="1013")
    for number in itertools.count():  # until both queries have come to the database
        bob.get_by_label("What you say").fill(f"anybody? {number}")
        bob.keyboard.press("Enter")
        expect(turned_away.or_(bob.get_by_text(f"anybody? {number}")).first).to_be_visible()
        if turned_away.is_visible():
            break
    expect(bob.get_by_role("status")).to_have_text(re.compile(r"the database is busy; .*cause=database"))
    bob.screenshot(path=SCREENSHOTS / "chat-dark-400.png")
    assert bob.evaluate("document.documentElement.scrollWidth") <= 400
    expect(bob.get_by_role("status")).to_have_text("signed in as bob")  # by itself
    expect(bob.get_by_label("Messages")).to_have_text(re.compile(rf"bobanybody\? {number}$"))  # and nothing is lost
    alice.screenshot(path=SCREENSHOTS / "chat-light.png")
    for page in (alice, second, bob):
        page.close()
