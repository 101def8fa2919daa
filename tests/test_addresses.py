"""One client has one address, however it is written."""

import ipaddress

import pytest
from granian.utils.proxies import wrap_asgi_with_proxy_headers
from hypercorn.middleware import ProxyFixMiddleware
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from asgi_closecodes import Guard, Settings
from asgi_closecodes.addresses import canonical_address
from asgi_closecodes.events import SessionRefused
from asgi_closecodes.gates import client_network
from asgi_closecodes.logs.redaction import safe_client
from asgi_closecodes.session.scope import client_of
from tests.support.asgi import events_of
from tests.support.fakes import ConnectedClients, FakeSession, wait_until

V4 = "203.0.113.5"
V6 = "2001:db8::5"
WRITTEN = {
    V4: [
        *(V4, f"{V4}:4001", f"{V4}:", f"{V4}:_hidden", f'"{V4}"', f'"{V4}:4001"', f"'{V4}'", f" {V4} ", f"[{V4}]:1"),
        *(f"::ffff:{V4}", f"[::ffff:{V4}]:4001", f"::ffff:{V4}:4001", "::FFFF:cb00:7105", "0:0:0:0:0:ffff:cb00:7105"),
        *(f"::ffff:0:{V4}", f"64:ff9b::{V4}", f"[64:ff9b::{V4}]:4001", "64:ff9b::cb00:7105", f"64:ff9b:1::{V4}"),
        *(f"::{V4}", "2002:cb00:7105::1", "2002:cb00:7105:5::77", f"::ffff:{V4}%eth0"),
        "2001:0:4136:e378:8000:63bf:34ff:8efa",  # Teredo has it inverted
    ],
    V6: [
        *(V6, "2001:DB8:0::0005", f"[{V6}]", f"[{V6}]:4001", f'"[{V6}]:4001"', f"[{V6}]:_hidden", f"{V6}%eth0"),
        *(f"[{V6}%25eth0]:4001", "2001:db8:0:0:0:0:0:5:4001"),
    ],
}
NO_ADDRESSES = [
    *("", "testclient", "unix:", "unix:/run/app.sock", "/run/app.sock", "example.com", "example.com:80", "host5"),
    *("not:an:address", "[", "]", "[]", "[]:1", "[x]:8", "[::1", "::1]", "[::1]x", "[::1]:999999", "%", ":", "9:9"),
    *("\x00", "\ud800", "é:1", "1.2.3.4:٣", "1.2.3.4:123456", "1.2.3.4.5:1", "1.2.3:80", "256.1.1.1:1", ":" * 200_000),
]


@pytest.mark.parametrize(("address", "written"), [(one, form) for one, forms in WRITTEN.items() for form in forms])
def test_address_has_one_form(address, written):
    assert canonical_address(written) == address
    assert client_of({"client": (written, 1)}) == (address, 1)
    assert client_network(FakeSession((written, 1))) == client_network(FakeSession((address, 1)))
    for mode in ("full", "hashed", "truncated"):
        assert safe_client(written, mode) == safe_client(address, mode)
    assert safe_client(written, "truncated") == ("203.0.113.0/24" if address == V4 else "2001:db8::/48")


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_host_that_is_no_address_stays(text):
    assert canonical_address(text) == text
    assert safe_client(text, "truncated") is None


@pytest.mark.parametrize("own", ["::", "::1", "::5", "fe80::1", "64:ff9b::", "64:ff9b:2::cb00:7105", "2001::1"])
def test_ipv6_address_is_no_ipv4(own):
    assert canonical_address(own) == own


@given(st.text('0123456789abcdef:.[]"%_ x', max_size=60) | st.text(max_size=60))
def test_anything_may_stand_for_an_address(text):
    canonical = canonical_address(text)
    assert canonical_address(canonical) == canonical
    client_network(FakeSession((text, 1)))
    safe_client(text, "truncated")


@given(st.ip_addresses(v=4))
def test_ipv4_address_is_returned_itself(address):
    """Nothing is allocated for nearly all sessions."""
    text = str(address)
    assert canonical_address(text) is text


@given(st.ip_addresses(v=6))
def test_ipv6_address_has_a_canonical_form(address):
    canonical = ipaddress.ip_address(canonical_address(address.exploded))
    assert canonical == address or canonical.version == 4


@pytest.mark.parametrize("client", [(V4,), [V4], (V4, None), (V4, "x"), (V4, "9" * 5000), (V4, -1)])
def test_client_without_a_port_has_an_address(client):
    assert client_of({"client": client}) == (V4, 0)


@pytest.mark.parametrize("client", [None, (), [], "", V4, 5, ("", "0"), (None, None)])
def test_client_of_another_kind_is_unknown(client):
    assert client_of({"client": client}) is None


@pytest.mark.anyio
@pytest.mark.parametrize("proxied", [ProxyHeadersMiddleware, ProxyFixMiddleware, wrap_asgi_with_proxy_headers])
@pytest.mark.parametrize(
    ("forwarded", "address"), [("203.0.113.5:{}", V4), ('"[2001:db8::5]:{}"', V6), ("64:ff9b::203.0.113.5", V4)]
)
async def test_port_of_a_proxy_lifts_no_limit(proxied, forwarded, address):
    seen = []
    guard = Guard(Settings(max_sessions_per_client=1), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        app = stay.app
        stay.app = proxied(app) if proxied is ProxyFixMiddleware else proxied(app, trusted_hosts="*")
        for port in (4001, 4002):
            await stay.come(1, headers=[(b"x-forwarded-for", forwarded.format(port).encode())])
        await wait_until(lambda: events_of(SessionRefused, seen))
        assert stay.codes() == [None, 1013]
    [refused] = events_of(SessionRefused, seen)
    assert refused.session.client[0] == address
