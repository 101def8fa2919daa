"""The rule, without a connection."""

import random
import subprocess
import sys
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.client import Backoff
from asgi_closecodes.client import backoff as module
from tests.support.client_rule import ATTEMPTS_IN_TEN_SECONDS, CASES, IDS, REASONS, plain


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.mark.parametrize(("name", "options", "story", "waits"), CASES, ids=IDS)
def test_rule(name, options, story, waits, clock):
    options = dict(options)
    can_renew = options.pop("renew", False)
    backoff = Backoff(**options, random=lambda: 1.0, clock=clock)
    seen = []
    for step in story:
        match plain(step):
            case ["close", code, reason]:
                seen.append(backoff.closed(code, reason, can_renew=can_renew))
            case ["pass", seconds]:
                clock.now += seconds
            case ["opened"]:
                backoff.opened()
            case ["message"]:
                backoff.received()
    assert seen == waits


@pytest.mark.parametrize(
    ("status", "retry_after", "wait"),
    [
        (503, "7", 7),
        (503, " 7 ", 7),
        (502, "7", 7),
        (504, "", 1),
        (503, "", 4),
        (503, "9" * 5000, 600),
        (503, "-7", 4),
        (503, "7.5", 4),
        (503, "nan", 4),
        (503, "soon", 4),
        (503, "\u0667", 4),
        (503, "Wed, 99 Nov 2026 07:28:00 GMT", 4),
        (403, "7", None),
        (429, "7", None),
        (404, "", None),
        (200, "", None),
        (301, "", None),
    ],
)
def test_refusal_by_http(status, retry_after, wait):
    assert Backoff(random=lambda: 1.0).refused(status, retry_after) == wait


def test_status_that_is_to_be_retried():
    assert Backoff(retry=[429], random=lambda: 1.0).refused(429, "7") == 7


def test_date_to_come_back_at(monkeypatch):
    backoff = Backoff(random=lambda: 1.0)
    monkeypatch.setattr(module.time, "time", lambda: 1_800_000_000.0)
    assert backoff.refused(503, formatdate(1_800_000_100, usegmt=True)) == 100
    assert backoff.refused(503, formatdate(1_800_009_000, usegmt=True)) == 600
    assert backoff.refused(503, formatdate(1_799_999_999, usegmt=True)) == 4  # it is over


def test_http_500_is_a_crash():
    backoff = Backoff(random=lambda: 1.0)
    assert [backoff.refused(500), backoff.closed(1011), backoff.refused(500), backoff.closed(4011)] == [1, 2, 4, 8]
    assert backoff.refused(500) is None


def test_refused_with_401_is_renewed_once():
    backoff = Backoff(random=lambda: 1.0)
    assert backoff.refused(401) is None
    assert backoff.refused(401, "2", can_renew=True) == 2
    assert backoff.closed(3000, can_renew=True) is None  # the two are one
    assert backoff.refused(403, can_renew=True) is None


@given(st.text() | st.integers().map(str) | st.floats().map(str) | st.dates().map(str))
def test_whatever_a_server_says_the_wait_is_a_bounded_number(anything):
    backoff = Backoff()
    assert 0 <= backoff.closed(1013, f"x; retry_after={anything}") <= 600
    assert 0 <= backoff.closed(1013, anything) <= 600
    assert 0 <= backoff.refused(503, anything) <= 600


@given(st.randoms(use_true_random=False), st.booleans())
def test_server_that_accepts_in_order_to_close_is_not_pestered(chance, with_hint):
    clock = Clock()
    backoff = Backoff(random=chance.random, clock=clock)
    attempts = 0
    while clock.now < 1010:
        attempts += 1
        backoff.opened()
        clock.now += backoff.closed(1013, "try again later; retry_after=2.0" if with_hint else "")
    assert attempts <= ATTEMPTS_IN_TEN_SECONDS


def test_clients_do_not_come_back_together():
    for code, least, most in ((1006, 0, 1), (1013, 2, 4)):
        waits = sorted(Backoff(random=random.Random(seed).random).closed(code) for seed in range(1000))
        assert least <= waits[0] < least + 0.1 * (most - least)
        assert most - 0.1 * (most - least) < waits[-1] <= most
        assert 0.4 < (waits[500] - least) / (most - least) < 0.6


@pytest.mark.parametrize(
    "bad", [{"cap": 0}, {"cap": float("nan")}, {"max_hint": -1}, {"max_crashes": 0}, {"cap": 10**40}]
)
def test_unusable_argument_is_named(bad):
    (name, value) = *bad, *bad.values()
    with pytest.raises(ValueError, match=rf"{name}={value!r}: use a number above 0"):
        Backoff(**bad)


def test_without_the_extra_there_is_a_backoff_and_a_clear_error():
    code = """
import sys
for name in ("httpx", "httpx_ws", "wsproto"):
    sys.modules[name] = None
from asgi_closecodes.client import Backoff, connect
Backoff().closed(1013)
try:
    connect("ws://127.0.0.1/")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'asgi-closecodes[client]'" in done.stdout


@pytest.mark.parametrize(("reason", "hint"), [(reason, hint) for reason, _, _, hint in REASONS if hint])
def test_hint_of_a_reason_is_read_as_in_a_page(reason, hint):
    assert Backoff(random=lambda: 0.0).closed(1012, reason) == hint
