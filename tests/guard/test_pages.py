"""The table of pages that hammer."""

import heapq
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.guard import pages as module
from asgi_closecodes.guard.pages import HINT_PRECISION_S, MAX_HINTS, MAX_PAGES, Pages, page_of
from tests.support.asgi import Peer


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Visits:
    """Refuses pages at given times; says by what."""

    def __init__(self):
        self.clock = Clock()
        self.pages = Pages(self.clock)

    def refuse(self, at, page=b"page", retry_after=10.0):
        self.clock.now = 100.0 + at
        if self.pages.is_hammering(page):
            return "http"
        self.pages.refused_by_close(page, retry_after)
        return "close"


class Model:
    """The rule as WIRE.md says it, of one page, with all that has ever happened."""

    def __init__(self):
        self.early = []
        self.hints = []
        self.hammers_since = None

    def refuse(self, now, retry_after):
        if self.hammers_since is not None:
            if now - self.hammers_since < 3:
                self.hammers_since = now
                return "http"
            self.__init__()
        due = [hint for hint in self.hints if hint <= now]
        if due:
            self.hints.remove(min(due))
        else:
            self.early.append(now)
            if len([at for at in self.early if now - at <= 3]) >= 3:
                self.hammers_since = now
        self.hints.append(now + retry_after - HINT_PRECISION_S)
        return "close"


TICKS = st.integers(0, 16).map(lambda ticks: ticks / 4)  # of a quarter of a second, which is exact


@given(st.lists(st.tuples(TICKS, st.sampled_from([b"a", b"b"]), TICKS), max_size=60))
def test_pages_follow_the_rule(visits):
    """The table forgets a lot, and nothing that matters."""
    seen, models = Visits(), defaultdict(Model)
    now = 0.0
    for pause, page, retry_after in visits:
        now += pause
        expected = models[page].refuse(100.0 + now, retry_after)
        assert seen.refuse(now, page, retry_after) == expected


def test_page_that_hammers_gets_http_until_it_was_away():
    visits = Visits()
    told = [visits.refuse(at) for at in (0, 0.1, 0.2, 0.3, 3.2, 6.1, 9.2, 9.3, 9.4, 9.5)]
    assert told == ["close"] * 3 + ["http"] * 3 + ["close"] * 3 + ["http"]


@pytest.mark.parametrize("away", [b"a", b"b"])
def test_page_that_goes_on_keeps_no_other(away):
    visits = Visits()
    for at in range(3):
        assert [visits.refuse(at / 10, page) for page in (b"a", b"b")] == ["close"] * 2
    [staying] = {b"a", b"b"} - {away}
    assert [visits.refuse(at, staying) for at in (1, 2, 3)] == ["http"] * 3
    assert visits.refuse(3.2, away) == "close"
    assert visits.refuse(3.3, staying) == "http"


def test_page_that_is_slow_enough_gets_closes():
    visits = Visits()
    assert {visits.refuse(at * 1.6, retry_after=60) for at in range(50)} == {"close"}


@pytest.mark.parametrize("retry_after", [0, 0.5, 0.94, 2.36])
def test_client_that_obeys_its_hint_is_never_counted(retry_after):
    """The hint is what it reads in the close reason, with one decimal."""
    visits, at = Visits(), 0.0
    for _ in range(50):
        assert visits.refuse(at, retry_after=retry_after) == "close"
        at += float(f"{retry_after:.1f}")


def test_newcomer_among_200_alike_gets_a_close():
    """200 browsers that look like one obey their hints: 50 refusals a second, and now and then somebody is new."""
    visits = Visits()
    due = [number * 1.6 for number in range(200)]  # they come as slowly as nobody could take for one page
    for step in range(12_000):
        at = heapq.heappop(due)
        assert visits.refuse(at, retry_after=4.0) == "close", step
        heapq.heappush(due, at + 4.0)
        if step > 9_000 and step % 500 == 0:
            assert visits.refuse(at, retry_after=4.0) == "close", step
            heapq.heappush(due, at + 4.0)


def test_forged_pages_are_bounded_and_hide_nobody():
    visits = Visits()
    for number in range(3):
        assert visits.refuse(0.1 * number) == "close"
    for number in range(3 * MAX_PAGES):
        forged = number.to_bytes(4, "big")
        assert visits.refuse(0.3 + number / 100_000, forged) == "close"
    assert len(visits.pages) <= MAX_PAGES + 1
    assert visits.refuse(0.6) == "http"


def test_forged_pages_that_hammer_are_bounded():
    visits = Visits()
    for number in range(2 * MAX_PAGES):
        for _ in range(3):
            visits.refuse(number / 100_000, number.to_bytes(4, "big"))
    assert len(visits.pages) <= MAX_PAGES


def test_hints_of_one_page_are_bounded():
    visits = Visits()
    for number in range(2 * MAX_HINTS):
        visits.refuse(number * 2.0, retry_after=86400.0)
    [entry] = visits.pages._refused.values()
    assert len(entry._hints) == MAX_HINTS


SCOPE = {
    "client": ("192.0.2.1", 50000),
    "path": "/ws",
    "query_string": b"a=1",
    "headers": [(b"cookie", b"session=secret"), (b"user-agent", b"Browser"), (b"origin", b"https://example.org")],
}
OTHERS = {
    "address": {"client": ("192.0.2.2", 50000)},
    "no address": {"client": None},
    "path": {"path": "/ws2"},
    "a path that is no text": {"path": "/\udcff"},
    "query": {"query_string": b"a=2"},
    **{
        f"{name.decode()} {value}": {
            "headers": [(one, value if one == name else was) for one, was in SCOPE["headers"]],
        }
        for name, _ in SCOPE["headers"]
        for value in (b"other", b"")
    },
    "a cookie moved": {"headers": [(b"user-agent", b"session=secretBrowser"), *SCOPE["headers"][2:]]},
}


def test_page_is_known_by_what_makes_it_one():
    known = {page_of(Peer(**{**SCOPE, **other}).scope) for other in [{}, *OTHERS.values()]}
    assert len(known) == 1 + len(OTHERS)


@pytest.mark.parametrize(
    "same",
    [
        {"client": ("192.0.2.1", 50001)},
        {"client": ["192.0.2.1:50001", "0"]},
        {"client": ("::ffff:192.0.2.1", 1)},
        {"headers": [*SCOPE["headers"], (b"sec-websocket-key", b"x")]},
        {"extensions": {}},
    ],
    ids=str,
)
def test_page_is_the_same_in_another_connection(same):
    assert page_of(Peer(**{**SCOPE, **same}).scope) == page_of(Peer(**SCOPE).scope)


MASKED = (  # what Streamlit sent to one page in a row
    b"_streamlit_xsrf=2|c5c43979|bf1d6254d3152cfcf83909d20bf35023|1796049086",
    b"_streamlit_xsrf=2|af69313a|d5b06a17b9b824bf92940191615e5860|1796049086",
    b"_streamlit_xsrf=2|116a2edf|6bb375f207bb3b5a2c971e74df5d4785|1796049086",
)


def test_page_is_the_same_with_its_token_masked_anew():
    assert len({page_of(Peer(headers=[(b"cookie", cookie)]).scope) for cookie in MASKED}) == 1
    assert page_of(Peer(headers=[(b"cookie", MASKED[0].replace(b"|bf", b"|be"))]).scope) != page_of(
        Peer(headers=[(b"cookie", MASKED[0])]).scope
    )


@pytest.mark.parametrize(
    "cookie", [b"a=2||", b"a=2|zz|00000000|", b"a=2|00000000|000|", b"\xff" * 70_000, b"2|" * 9000]
)
def test_page_with_any_cookie_is_known(cookie):
    assert page_of(Peer(headers=[(b"cookie", cookie)]).scope)


def test_page_is_stored_as_a_keyed_hash(monkeypatch):
    known = page_of(Peer(**SCOPE).scope)
    assert len(known) == 16
    monkeypatch.setattr(module, "_KEY", b"another process")
    assert page_of(Peer(**SCOPE).scope) != known
