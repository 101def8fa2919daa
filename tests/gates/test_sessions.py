import asyncio
import contextlib
import gc
import re
import threading
import weakref
from contextlib import asynccontextmanager
from types import SimpleNamespace

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, TryAgainLater
from asgi_closecodes.events import GateFailed, SessionFailed, SessionRefused
from asgi_closecodes.gates import AllOf, MaxSessions, MaxSessionsPerKey, Shadow, client_network
from asgi_closecodes.gates.per_key import SessionsByKey
from tests.support.asgi import Handler, Peer, events_of
from tests.support.fakes import ConnectedClients, FakeSession, Keyed, admitted, of_key, refused, wait_until

NOBODY = SimpleNamespace(priority=0)


session_of = FakeSession


def by_name(session):
    return session.name


# client_network


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:c000:0207", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("fe80::2%25wlan0", "fe80::/64"),
        ("unix:", "unix:"),
        ("testclient", "testclient"),
        ("not:an:address", "not:an:address"),
        ("%eth0:", "%eth0:"),
        ("203.0.113.5:4001", "203.0.113.5"),
        ('"[2001:db8::5]:4001"', "2001:db8::/64"),
        ("[::1]", "::/64"),
        ("64:ff9b::203.0.113.5", "203.0.113.5"),
    ],
)
def test_client_is_known_by_its_address_or_its_ipv6_network(host, network):
    assert client_network(session_of((host, 50000))) == network


@pytest.mark.parametrize("client", [None, [], (), ("", "0")])
def test_client_on_a_unix_socket_has_no_network(client):
    assert client_network(session_of(client)) is None
    assert client_network(SimpleNamespace(scope={})) is None


def test_client_may_be_a_list_with_anything_in_it():
    assert client_network(session_of(["192.0.2.7", None])) == "192.0.2.7"
    assert client_network(session_of([None, None])) == "None"


def test_forwarded_header_is_not_read():
    session = session_of(("192.0.2.7", 1))
    session.scope["headers"] = [(b"x-forwarded-for", b"198.51.100.1"), (b"forwarded", b"for=198.51.100.1")]
    assert client_network(session) == "192.0.2.7"


# Limits


@pytest.mark.parametrize("kind", [MaxSessions, MaxSessionsPerKey])
@pytest.mark.parametrize("limit", [-1, 1.5, "10", True, float("nan"), float("inf"), 2**53 + 1, 10**40])
def test_limit_is_a_number_of_sessions(kind, limit):
    with pytest.raises(ValueError, match="use a whole number, 0 or more, or None"):
        kind(limit)
    gate = kind(3)
    with pytest.raises(ValueError, match=f"limit={limit!r}"):
        gate.limit = limit
    assert gate.limit == 3


@pytest.mark.anyio
async def test_sessions_are_admitted_to_the_limit_and_after_a_release():
    """Sessions come in up to the limit, and one more for each that leaves."""
    gate = MaxSessions(2)
    async with gate.admit(NOBODY):
        async with gate.admit(NOBODY):
            with pytest.raises(TryAgainLater) as refused:
                await gate.admit(NOBODY).__aenter__()
            assert gate.usage == 2
        async with gate.admit(NOBODY):
            assert gate.usage == 2
    assert gate.usage == 0
    refusal = refused.value
    assert (refusal.cause, refusal.usage, refusal.limit, refusal.retry_after) == ("full", 2, 2, None)


@pytest.mark.anyio
async def test_sessions_of_one_key_are_limited_and_others_are_not():
    gate = MaxSessionsPerKey(1)
    ours, theirs, more = (session_of((host, 1)) for host in ("192.0.2.7", "192.0.2.8", "192.0.2.7"))
    async with gate.admit(ours), gate.admit(theirs):
        with pytest.raises(TryAgainLater) as refused:
            await gate.admit(more).__aenter__()
        assert (gate.active, gate.active_of("192.0.2.7"), gate.active_of("192.0.2.8")) == (2, 1, 1)
    assert (gate.active, gate.active_of("192.0.2.7"), gate.active_of("192.0.2.8")) == (0, 0, 0)
    assert (refused.value.cause, refused.value.usage, refused.value.limit) == ("client", 1, 1)


@pytest.mark.anyio
async def test_one_ipv6_network_is_one_client():
    gate = MaxSessionsPerKey(1)
    async with gate.admit(session_of(("2001:db8::1", 1))), gate.admit(session_of(("2001:db8:0:1::1", 1))):
        with pytest.raises(TryAgainLater):
            await gate.admit(session_of(("2001:db8::2", 1))).__aenter__()


@pytest.mark.anyio
async def test_sessions_without_a_key_are_not_limited():
    gate = MaxSessionsPerKey(0)
    async with gate.admit(session_of(None)), gate.admit(session_of(None)):
        assert gate.active == 2
    assert gate.active == 0


@pytest.mark.anyio
async def test_permit_is_given_back_to_the_key_that_took_it():
    gate = MaxSessionsPerKey(1, key=by_name)
    session = session_of(None, name="before login")
    async with gate.admit(session):
        session.name = "after login"
    assert (gate.active, gate.active_of("before login"), gate.active_of("after login")) == (0, 0, 0)


@pytest.mark.anyio
async def test_key_without_a_session_takes_no_memory():
    gate = MaxSessionsPerKey(1, key=by_name)
    for name in range(1000):
        async with gate.admit(session_of(None, name=name)):
            pass
    gate.limit = 0
    with pytest.raises(TryAgainLater):
        await gate.admit(session_of(None, name="refused")).__aenter__()
    assert not gate._sessions


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "drop"]),
            st.sampled_from([None, "ann", "bob"]),
            st.sampled_from("wxyz"),
            st.none() | st.integers(1, 9),
        )
    )
)
def test_however_sessions_are_kept_each_key_has_its_own_in_order(steps):
    kept, model = SessionsByKey(), {}
    for step, key, session, number in steps:
        if step == "put":
            kept.put(key, session, number)
            model.setdefault(key, {})[session] = number
        else:
            assert kept.drop(key, session) == (session in model.get(key, {}))
            model.get(key, {}).pop(session, None)
        model = {key: sessions for key, sessions in model.items() if sessions}
        assert {key: [*kept.of(key).items()] for key in kept} == {key: [*its.items()] for key, its in model.items()}
        assert len(kept) == len(model)


@pytest.mark.anyio
@pytest.mark.parametrize("gate", [lambda: MaxSessions(None), lambda: MaxSessionsPerKey(None)])
async def test_limit_set_below_use_holds_and_may_be_lifted(gate):
    gate = gate()

    def one_more():
        return gate.admit(session_of(("192.0.2.7", 1)))

    async with one_more():
        async with one_more():
            gate.limit = 1
            with pytest.raises(TryAgainLater):
                await one_more().__aenter__()
        with pytest.raises(TryAgainLater):
            await one_more().__aenter__()
        gate.limit = None
        async with one_more():
            assert gate.usage == 2
    assert gate.usage == 0


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [MaxSessions, MaxSessionsPerKey])
async def test_limit_of_zero_admits_nobody(kind):
    gate = kind(0)
    with pytest.raises(TryAgainLater):
        await gate.admit(session_of(("192.0.2.7", 1))).__aenter__()
    assert gate.usage == 0


@pytest.mark.anyio
async def test_asking_for_admission_without_entering_holds_nothing():
    for gate in (MaxSessions(1), MaxSessionsPerKey(1)):
        gate.admit(session_of(("192.0.2.7", 1)))
        assert gate.usage == 0


@pytest.mark.anyio
@pytest.mark.parametrize("key", [lambda _session: 1 / 0, lambda _session: ["unhashable"]])
@pytest.mark.parametrize("failure", ["open", "closed"])
async def test_key_that_cannot_be_used_is_a_fault_of_the_gate(key, failure):
    gate = MaxSessionsPerKey(1, key=key)
    guard = Guard(Settings(gate_failure=failure), gate=gate)
    peer = await Peer().visit(CloseCodeMiddleware(Handler(), guard))
    assert peer.closed[0] == 1013 if failure == "closed" else peer.heard == ["accept"]
    assert gate.usage == 0


# Keys that the handler knows


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["before", "after"])
async def test_session_counts_under_the_key_that_its_handler_sets(when):
    gate = MaxSessionsPerKey(1, key=of_key)
    events = []
    guard = Guard(gate=gate, observers=[events.append])
    async with ConnectedClients(guard, Keyed(when)) as stay:
        await stay.come(1, path="/alice")
        await stay.come(1, path="/bob")
        await wait_until(lambda: gate.active_of("alice") == gate.active_of("bob") == 1)
        assert (gate.active, gate.active_of(None)) == (2, 0)
        again = await Peer(path="/alice").visit(stay.app)
        assert again.heard == ["accept", "close"]
        assert re.fullmatch(r"try again later; retry_after=\d+\.\d; cause=client", again.closed[1])
        assert again.closed[0] == 1013
        assert (gate.active, gate.active_of("alice"), len(guard.sessions)) == (2, 1, 2)
        assert stay.codes() == [None, None]
    assert (gate.active, len(gate._sessions)) == (0, 0)
    [refusal] = events_of(SessionRefused, events)
    assert (refusal.gate, refusal.cause, refusal.usage, refusal.limit) == ("max_sessions_per_key", "client", 1, 1)
    assert not events_of(SessionFailed, events)


@pytest.mark.anyio
async def test_gate_may_set_the_key_for_those_after_it():
    class Authenticated:
        @asynccontextmanager
        async def admit(self, session):
            session.key = session.scope["path"]
            yield

    gate = MaxSessionsPerKey(1, key=of_key)
    async with ConnectedClients(Guard(gate=AllOf(Authenticated(), gate))) as stay:
        await stay.come(2, path="/alice")
        await wait_until(lambda: stay.codes() == [None, 1013])
        assert gate.active_of("/alice") == 1


@pytest.mark.anyio
async def test_new_key_may_replace_the_oldest_session_of_that_key():
    gate = MaxSessionsPerKey(1, key=of_key, when_full="replace_oldest")
    async with ConnectedClients(Guard(gate=gate), Keyed()) as stay:
        await stay.come(1, path="/alice")
        await stay.come(1, path="/alice")
        await wait_until(lambda: stay.codes() == [1013, None])
        assert "cause=replaced" in stay.peers[0].closed[1]
        await wait_until(lambda: gate.active == gate.active_of("alice") == 1)
    assert (gate.active, len(gate._sessions)) == (0, 0)


@pytest.mark.anyio
async def test_key_may_be_set_in_a_thread():
    gate = MaxSessionsPerKey(1, key=of_key)
    threads = []

    async def handler(scope, receive, send):
        def set_key():
            threads.append(threading.get_ident())
            scope["extensions"]["closecodes"].key = "alice"

        await anyio.to_thread.run_sync(set_key)
        await Handler()(scope, receive, send)

    def key(session):
        threads.append(threading.get_ident())
        return session.key

    gate.key = key
    async with ConnectedClients(Guard(gate=gate), handler) as stay:
        await stay.come(2)
        await wait_until(lambda: stay.codes() == [None, 1013])
        assert gate.active_of("alice") == 1
    # Counted by the event loop alone: admitted, set, admitted, set, set back.
    assert [thread == threading.get_ident() for thread in threads] == [True, False, True] * 2 + [True]


@pytest.mark.anyio
async def test_key_that_is_refused_stays_what_it_was_in_every_gate():
    free, full = MaxSessionsPerKey(9, key=of_key), MaxSessionsPerKey(0, key=of_key)
    seen = []

    async def handler(scope, receive, send):
        session = scope["extensions"]["closecodes"]
        for key in ("alice", None):
            with contextlib.suppress(TryAgainLater):
                session.key = key
            seen.append((session.key, free.active_of("alice"), free.active_of(None), full.active_of(None)))
        await Handler()(scope, receive, send)

    peer = await Peer().visit(CloseCodeMiddleware(handler, Guard(gate=AllOf(free, full))))
    assert peer.heard == ["accept"]
    assert seen == [(None, 0, 1, 1)] * 2
    assert not free._sessions
    assert not full._sessions


@pytest.mark.anyio
async def test_key_in_the_shadow_is_not_refused():
    inner = MaxSessionsPerKey(1, key=of_key)
    events = []
    async with ConnectedClients(Guard(gate=Shadow(inner), observers=[events.append]), Keyed()) as stay:
        await stay.come(2, path="/alice")
        assert stay.codes() == [None, None]
        assert (inner.active_of("alice"), inner.active_of(None)) == (1, 1)
    assert not inner._sessions
    assert [refusal.mode for refusal in events_of(SessionRefused, events)] == ["shadow"]


@pytest.mark.anyio
@pytest.mark.parametrize("failure", ["open", "closed"])
async def test_key_that_becomes_unusable_is_a_fault_of_the_gate(failure):
    gate = MaxSessionsPerKey(1, key=lambda session: ["unhashable"] if session.key else None)
    events = []
    guard = Guard(Settings(gate_failure=failure), gate=gate, observers=[events.append])
    peer = await Peer(path="/alice").visit(CloseCodeMiddleware(Keyed(), guard))
    assert peer.closed[0] == 1013 if failure == "closed" else peer.heard == ["accept"]
    assert [type(event.exception) for event in events_of(GateFailed, events)] == [TypeError]
    assert not gate._sessions


def test_session_given_a_key_is_freed_with_its_last_reference():
    gone = []

    async def handler(scope, _receive, _send):
        scope["extensions"]["closecodes"].key = "alice"
        weakref.finalize(scope["extensions"]["closecodes"], gone.append, "gone")

    async def main():
        await Peer().visit(CloseCodeMiddleware(handler, Guard(gate=MaxSessionsPerKey(2, key=of_key))))

    gc.disable()
    try:
        asyncio.run(main())
        assert gone == ["gone"]
    finally:
        gc.enable()


# Shares for the important


@pytest.mark.anyio
async def test_reserve_is_kept_from_a_priority():
    gate = MaxSessions(10, reserve={1: 0.2, 2: 1})
    for _ in range(8):
        assert await admitted(gate, FakeSession(priority=1))
    assert not await admitted(gate, FakeSession(priority=1))
    assert not await admitted(gate, FakeSession(priority=2))
    assert await admitted(gate, FakeSession(priority=0))
    assert await admitted(gate, FakeSession(priority=7))
    assert not await admitted(gate, FakeSession(priority=0))
    assert gate.usage == 10


@pytest.mark.parametrize("kind", [MaxSessions, MaxSessionsPerKey])
@pytest.mark.parametrize("digits", [400, 5000])
def test_limit_of_many_digits_is_refused(kind, digits):
    with pytest.raises(ValueError, match="None for no limit; at most 9007199254740992"):
        kind(10**digits)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "0.1", 10**400])
def test_reserve_is_a_share(share):
    with pytest.raises(ValueError, match="use a share of the limit between 0 and 1"):
        MaxSessions(10, reserve={1: share})


# Replacing


@pytest.mark.anyio
async def test_oldest_session_of_a_key_is_replaced_by_the_newest():
    """The oldest session of a key is replaced, and its permit handed on."""
    gate = MaxSessionsPerKey(2, when_full="replace_oldest")
    first, second, third, other = FakeSession(), FakeSession(), FakeSession(), FakeSession(("192.0.2.8", 1))
    places = [gate.admit(session) for session in (first, second, other, third)]
    for place in places:
        await place.__aenter__()
    assert [refusal.cause for refusal in first.ended] == ["replaced"]
    assert not second.ended
    assert not third.ended
    assert not other.ended
    assert (gate.active, gate.active_of("192.0.2.7")) == (3, 2)
    for place in places:
        await place.__aexit__(None, None, None)
    assert (gate.active, gate.active_of("192.0.2.7")) == (0, 0)


@pytest.mark.anyio
async def test_gate_that_replaces_nobody_has_nobody_to_replace():
    assert not await admitted(MaxSessionsPerKey(0, when_full="replace_oldest"))


def test_when_full_is_one_of_two():
    with pytest.raises(ValueError, match="'sometimes': use 'refuse' or 'replace_oldest'"):
        MaxSessionsPerKey(1, when_full="sometimes")


def test_key_is_a_function():
    with pytest.raises(TypeError, match="key='user' cannot be called; use a function of the session"):
        MaxSessionsPerKey(1, key="user")


# Lowered limits


@pytest.mark.anyio
async def test_lowered_limit_leaves_an_excess():
    gate = MaxSessions(5)
    for _ in range(5):
        assert await admitted(gate)
    assert gate.excess() == 0
    gate.limit = 2
    assert gate.excess() == 3
    gate.limit = None
    assert gate.excess() == 0


@pytest.mark.anyio
async def test_lowered_limit_a_key_leaves_the_newest_to_shed():
    gate = MaxSessionsPerKey(3)
    ours = [FakeSession() for _ in range(3)]
    theirs = FakeSession(("192.0.2.8", 1))
    for session in (*ours, theirs):
        assert await admitted(gate, session)
    assert list(gate.to_shed()) == []
    gate.limit = 1
    assert list(gate.to_shed()) == ours[1:]
    assert list(gate.to_shed()) == ours[1:]  # they are still there
    gate.limit = 3
    assert list(gate.to_shed()) == []


@pytest.mark.anyio
async def test_refusal_says_what_is_in_use():
    gate = MaxSessions(1)
    assert await admitted(gate)
    assert (await refused(gate)).usage == 1
