import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.addresses import canonical_address
from asgi_closecodes.logs.redaction import MAX_PATH_CHARS, one_line, raw_path, safe_client, safe_path

paths = st.text(st.one_of(st.sampled_from("/\r\n\x1b\u202e\ud800 %?é"), st.characters()))


@given(paths)
def test_path_is_percent_encoded_and_bounded(path):
    for shown in (safe_path(path), raw_path(path)):
        assert len(shown) <= MAX_PATH_CHARS == 256
        assert re.fullmatch(r"[!-~]*", shown)


@pytest.mark.parametrize(
    "segment",
    [
        "0123456789abcdef",
        "550e8400-e29b-41d4-a716-446655440000",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
        "AKIAIOSFODNN7EXAMPLEwJalrXUtnFEMI",
        "c2VjcmV0IHRva2VuIGZvciB0ZXN0cw==",
    ],
)
def test_text_like_a_token_is_masked(segment):
    assert safe_path(f"/rooms/{segment}/chat") == "/rooms/REDACTED/chat"
    assert segment[:8] in raw_path(f"/rooms/{segment}/chat")


@pytest.mark.parametrize(
    "path",
    ["/", "", "/rooms/12345", "/articles/some-long-article-title-of-2026", "/v1/ws", "/a/b/c", "/internationalization"],
)
def test_words_and_numbers_are_kept(path):
    assert safe_path(path) == path


@given(st.ip_addresses())
def test_client_may_be_cut_to_its_network(address):
    address = ipaddress.ip_address(canonical_address(str(address)))
    shown = ipaddress.ip_network(safe_client(str(address), "truncated"))
    assert address in shown
    assert shown.prefixlen == (24 if address.version == 4 else 48)


@given(paths)
def test_client_may_be_anything(address):
    assert safe_client(address, "off") is None
    assert "\n" not in safe_client(address, "full")
    assert re.fullmatch("[0-9a-f]{12}", safe_client(address, "hashed"))
    safe_client(address, "truncated")


def test_hashed_clients_are_told_apart():
    assert safe_client("192.0.2.1", "hashed") == safe_client("192.0.2.1", "hashed")
    assert safe_client("192.0.2.1", "hashed") != safe_client("192.0.2.2", "hashed")


@given(paths)
def test_one_line_is_one_line(text):
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", shown)
    shown.encode()


def test_printable_text_is_not_changed():
    assert one_line("naïve 日本 😀 ~") == "naïve 日本 😀 ~"
    assert one_line("a\nb\x1b[0m") == "a\\nb\\x1b[0m"
