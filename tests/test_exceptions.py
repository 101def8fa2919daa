import copy
import enum
import inspect
import logging
import math
import pickle
import re
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocketDisconnect

from asgi_closecodes import Close, CloseCode, CloseCodeMiddleware, CloseWith, Guard, Settings, TryAgainLater
from asgi_closecodes.events import CallbackFailed, CloseRepaired, GateFailed, SessionFailed, SessionRefused, SessionShed
from asgi_closecodes.exceptions import checked_mapping, close_for_status, deliberate_close, leaves
from asgi_closecodes.gates import AllOf, HandshakeRate, MaxSessions, Shadow
from asgi_closecodes.gates.base import NO_PERMIT
from tests.support.asgi import Handler, Peer, events_of
from tests.support.fakes import ConnectedClients, wait_until

pytestmark = pytest.mark.jumping_clock


def close_of(error, mapping=None):
    """What ``error`` asks for: code and reason, or None for an error."""
    close = deliberate_close(leaves(error), checked_mapping(mapping))
    return close and (close.code, close.reason)


# TryAgainLater


class Hostile(str):  # noqa: SLOT000
    """Text that answers nothing."""

    def _fail(self, *_arguments):
        raise RuntimeError("never ask")

    __str__ = __repr__ = __eq__ = __ne__ = __len__ = __format__ = encode = isascii = _fail
    __hash__ = str.__hash__


class Faulty:
    def __float__(self):
        raise RuntimeError("no number")

    __str__ = __repr__ = __bool__ = __float__


CAUSES = [
    ("", "unknown"),
    ("two words", "two_words"),
    ("a;b", "a_b"),
    ("a=b", "a_b"),
    ("é", "_"),
    ("full\n", "full_"),
    ("\x00", "_"),
    ("\ud800", "_"),
    ("x" * 33, "x" * 32),
    ("x" * 1_000_000, "x" * 32),
    (Hostile("a b"), "a_b"),
    (5, "unknown"),
    (10**5000, "unknown"),
    (b"full", "unknown"),
    (["full"], "unknown"),
    (False, "unknown"),
    (Faulty(), "unknown"),
]
DELAYS = [
    (math.nan, None),
    (math.inf, 86400),
    (-math.inf, 0),
    (-1, 0),
    (-0.0001, 0),
    (1e308, 86400),
    (10**400, 86400),
    (-(10**400), 0),
    (10**5000, 86400),
    (Fraction(10**400), 86400),
    (Decimal(-5), 0),
    (Decimal("nan"), None),
    (Decimal("sNaN"), None),
    ("soon", None),
    ("nan", None),
    ("9" * 5000, 86400),
    (True, None),
    (False, None),
    (1j, None),
    ([], None),
    (timedelta(seconds=5), None),
    (Faulty(), None),
]
HOSTILE = [({"cause": given}, {"cause": sent}) for given, sent in CAUSES] + [
    ({"retry_after": given}, {"retry_after": sent}) for given, sent in DELAYS
]


IDS = list(map(str, range(len(HOSTILE))))  # pytest would ask the values for theirs


@pytest.mark.parametrize(("given", "sent"), HOSTILE, ids=IDS)
def test_refusal_that_cannot_be_sent_is_repaired(given, sent):
    """Nothing raises: a gate that fails would let the session in."""
    refusal = TryAgainLater(**given)
    assert {name: getattr(refusal, name) for name in given} == sent
    assert len(refusal.repairs) == 1
    assert len(refusal.repairs[0]) < 120


@pytest.mark.parametrize(("given", "sent"), HOSTILE, ids=IDS)
def test_refusal_changed_later_is_repaired(given, sent):
    refusal = TryAgainLater()
    vars(refusal).update(given)
    refusal.repair()
    assert {name: getattr(refusal, name) for name in given} == sent


@pytest.mark.parametrize(
    ("retry_after", "seconds"), [(Decimal("2.5"), 2.5), (Fraction(5, 2), 2.5), ("120", 120), (0, 0), (86400, 86400)]
)
def test_hint_may_be_any_number(retry_after, seconds):
    refusal = TryAgainLater(retry_after=retry_after)
    assert refusal.retry_after == seconds
    assert type(refusal.retry_after) in {int, float}
    assert not refusal.repairs


class Kind(enum.StrEnum):
    FULL = "full"


def test_cause_may_be_of_an_enum():
    refusal = TryAgainLater(cause=Kind.FULL)
    assert type(refusal.cause) is str
    assert not refusal.repairs


@pytest.mark.parametrize(
    "reason",
    [
        pytest.param(Hostile("full"), id="hostile"),
        Faulty(),
        ["full"],
        b"full",
        None,
        5,
        pytest.param(10**5000, id="huge"),
        "\ud800" * 200,
    ],
)
def test_refusal_may_have_any_reason(reason):
    refusal = TryAgainLater(reason)
    assert type(refusal.reason) is str
    assert len(refusal.reason_with(2.0).encode()) <= 123


@pytest.mark.parametrize("number", [math.nan, math.inf, 10**400, "5", True, Faulty(), [], Decimal(5)])
def test_usage_and_limit_are_numbers_or_unknown(number):
    refusal = TryAgainLater(usage=number, limit=number)
    assert (refusal.usage, refusal.limit) == (None, None)


tokens = st.text("abcXYZ019_.-", min_size=1, max_size=32)


@given(st.text(max_size=200), st.none() | tokens, st.floats(0, 1e6))
def test_reason_is_text_and_parameters_that_a_client_can_read(text, cause, retry_after):
    reason = TryAgainLater(text, cause=cause).reason_with(retry_after)
    assert len(reason.encode()) <= 123
    front, *parameters = reason.rsplit("; ", 1 if cause is None else 2)
    assert text.startswith(front)
    expected = {"retry_after": f"{retry_after:.1f}"} | ({} if cause is None else {"cause": cause})
    assert dict(parameter.split("=") for parameter in parameters) == expected


def test_default_reason_is_the_documented_one():
    assert TryAgainLater(cause="full").reason_with(2.345) == "try again later; retry_after=2.3; cause=full"
    assert TryAgainLater().reason_with(0) == "try again later; retry_after=0.0"


def test_refusal_is_a_close_with_1013_and_503():
    refusal = TryAgainLater("busy", cause="db", retry_after=3, usage=10, limit=10)
    assert isinstance(refusal, CloseWith)
    assert (refusal.code, refusal.reason, refusal.status) == (1013, "busy", 503)
    assert (refusal.cause, refusal.retry_after, refusal.usage, refusal.limit) == ("db", 3, 10, 10)


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("error", [CloseWith(4001, "bye"), TryAgainLater("busy", cause="db", retry_after=3)])
def test_closes_raised_in_a_worker_process_arrive(error, again):
    arrived = again(error)
    assert type(arrived) is type(error)
    assert vars(arrived) == vars(error)


# The user's mapping


def test_all_that_is_wrong_with_a_mapping_is_said_at_once():
    with pytest.raises(ValueError) as raised:
        checked_mapping(
            {
                int: 1000,
                "KeyError": 1000,
                KeyboardInterrupt: 1000,
                ValueError: 1006,
                TypeError: Close(1005),
                OSError: True,
                KeyError: "4000",
                IndexError: 4000,
            }
        )
    text = str(raised.value)
    for wrong in (
        "<class 'int'>",
        "'KeyError'",
        "KeyboardInterrupt",
        "ValueError: code 1006",
        "TypeError: code 1005",
    ):
        assert wrong in text
    assert "OSError: code True" in text
    assert "KeyError: '4000'" in text
    assert "IndexError" not in text


def test_mapping_may_override_starlette_s_exceptions():
    assert close_of(WebSocketException(4000, "why")) == (4000, "why")
    assert close_of(WebSocketException(4000, "why"), {WebSocketException: 4001}) == (4001, "")


def test_mapping_is_not_changed_and_not_followed():
    mapping = {KeyError: 4000}
    checked = checked_mapping(mapping)
    mapping[ValueError] = 1006
    assert ValueError not in checked
    assert HTTPException not in mapping


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyError(), 4002), (IndexError(), 4001), (UnicodeError(), 4000), (RuntimeError(), 4000)],
)
def test_most_specific_class_counts(error, code):
    assert close_of(error, {Exception: 4000, LookupError: 4001, KeyError: 4002}) == (code, "")


@pytest.mark.parametrize("error", [CloseWith(4005, "as asked"), TryAgainLater("busy")])
def test_close_raised_wins_over_a_mapping_of_every_exception(error):
    assert close_of(error, {Exception: 4000}) == (error.code, error.reason)


def test_exception_that_is_not_mapped_is_an_error():
    assert close_of(KeyError()) is None
    assert close_of(KeyError(), {ValueError: 4000}) is None


@pytest.mark.parametrize(
    ("answer", "close"),
    [
        (4000, (4000, "")),
        (CloseCode.POLICY_VIOLATION, (1008, "")),
        (Close(4000, "why"), (4000, "why")),
        (CloseWith(4000, "why"), (4000, "why")),
        (TryAgainLater("busy"), (1013, "busy")),
        (None, None),
    ],
)
def test_function_of_the_exception_may_decide(answer, close):
    asked = []
    error = KeyError("k")
    assert close_of(error, {LookupError: lambda error: asked.append(error) or answer}) == close
    assert asked == [error]


@pytest.mark.parametrize("answer", [1013, CloseCode.TRY_AGAIN_LATER, lambda _error: 1013])
def test_mapping_to_1013_gives_a_hint_as_a_refusal_does(answer):
    close = deliberate_close([KeyError()], checked_mapping({KeyError: answer}))
    assert isinstance(close, TryAgainLater)


@pytest.mark.parametrize("answer", ["4000", True, 4000.0, b"", object(), ValueError("returned")])
def test_function_that_returns_nonsense_is_told_so(answer):
    with pytest.raises(TypeError, match="exceptions must give a sendable close code"):
        close_of(KeyError(), {KeyError: lambda _error: answer})


# Exception groups


def group(*errors):
    return ExceptionGroup("of a task group", errors)


@pytest.mark.parametrize(
    ("error", "close"),
    [
        (group(CloseWith(4001, "x")), (4001, "x")),
        (group(group(group(CloseWith(4001, "x"))), CloseWith(4001, "x")), (4001, "x")),
        (group(KeyError(), group(IndexError())), (4000, "mapped")),
        (group(KeyError(), CloseWith(4000, "mapped")), (4000, "mapped")),
        (group(CloseWith(4001), CloseWith(4002)), None),
        (group(CloseWith(4001, "x"), CloseWith(4001, "y")), None),
        (group(CloseWith(4001), group(ValueError())), None),
        (group(ValueError(), CloseWith(4001)), None),
    ],
)
def test_group_is_a_close_if_all_its_leaves_agree(error, close):
    assert close_of(error, {LookupError: Close(4000, "mapped")}) == close


@given(
    st.recursive(
        st.builds(KeyError), lambda children: st.lists(children, min_size=1, max_size=3).map(lambda c: group(*c))
    )
)
def test_leaves_of_a_group_are_all_that_is_in_it(error):
    assert all(isinstance(leaf, KeyError) for leaf in leaves(error))
    assert len(list(leaves(error))) == repr(error).count("KeyError")


# HTTP statuses


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (400, 1008, "400 Bad Request"),
        (404, 1008, "404 Not Found"),
        (429, 1013, "429 Too Many Requests"),
        (500, 1011, "500 Internal Server Error"),
        (503, 1013, "503 Service Unavailable"),
        (599, 1011, "599"),
        (499, 1008, "499"),
    ],
)
def test_http_status_becomes_the_close_that_means_it(status, code, reason):
    close = close_for_status(status, 7.0)
    assert (close.code, close.reason) == (code, reason)
    assert getattr(close, "retry_after", None) == (7.0 if code == 1013 else None)
    assert close_of(HTTPException(status, "whatever")) == (code, reason)


# In a session


async def visit(error, **guard):
    events = []
    app = CloseCodeMiddleware(Handler(error), Guard(Settings(), observers=[events.append], **guard))
    return await Peer().visit(app), events


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error",
    [
        CloseWith(4001, "as asked"),
        group(CloseWith(4001, "as asked"), group(WebSocketDisconnect(), CloseWith(4001, "as asked"))),
    ],
)
async def test_close_raised_by_a_handler_is_no_error(error):
    peer, events = await visit(error)
    assert peer.closed == (4001, "as asked")
    assert not events_of(SessionFailed, events)


@pytest.mark.anyio
async def test_try_again_later_raised_by_a_handler_carries_its_hint():
    peer, events = await visit(TryAgainLater("busy", cause="db", retry_after=7))
    assert peer.closed == (1013, "busy; retry_after=7.0; cause=db")
    assert not events_of(SessionFailed, events)


@pytest.mark.anyio
async def test_try_again_later_without_a_delay_takes_its_turn():
    """A TryAgainLater without a delay takes a turn in the queue."""
    peer, _ = await visit(TryAgainLater())
    assert re.fullmatch(r"try again later; retry_after=[0-9]+\.[0-9]", peer.closed[1])


class Rooms:
    """A gate that refuses whom it is to, with what comes from outside."""

    def __init__(self, *refusals):
        self.refusals = [*refusals]

    @asynccontextmanager
    async def admit(self, _session):
        if self.refusals:
            refusal = self.refusals.pop(0)
            raise refusal()
        yield


def refuse_with(given):
    return lambda: TryAgainLater(**given)


class Silent(TryAgainLater):
    def __init__(self, room):
        self.room = room


class Late(TryAgainLater):
    def __init__(self, room):
        super().__init__()
        self.cause, self.retry_after = f"room {room}", -1
        self.status = "much too full"
        self.code = "full"


IMPERFECT = [refuse_with(given) for given, _ in HOSTILE] + [
    lambda: Silent("a b"),
    lambda: Late("a b"),
    lambda: TryAgainLater(Hostile("x"), usage=Faulty(), limit=10**400),
    lambda: group(TryAgainLater(cause="a b"), group(TryAgainLater(retry_after=-1))),
]


@pytest.mark.anyio
@pytest.mark.parametrize("handshake", ["close", "http"])
@pytest.mark.parametrize("refusal", IMPERFECT)
async def test_imperfect_refusal_refuses(refusal, handshake, caplog):
    seen = []
    guard = Guard(Settings(reject_with=handshake), gate=Rooms(refusal), observers=[seen.append])
    handler = Handler()
    peer = await Peer().visit(CloseCodeMiddleware(handler, guard))
    assert not handler.scopes
    if handshake == "close":
        code, reason = peer.closed
        assert code in {1011, 1013}
        assert re.fullmatch(r"[^;]*; retry_after=\d+\.\d(; cause=[A-Za-z0-9_.-]+)?", reason)
    else:
        assert peer.status == 503
        assert re.fullmatch(rb"\d+", dict(peer.sent[0]["headers"])[b"retry-after"])
    [refused] = events_of(SessionRefused, seen)
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", refused.cause)
    assert 0 <= refused.retry_after <= 86400
    assert not events_of(GateFailed, seen)
    assert not events_of(CallbackFailed, seen)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.anyio
@pytest.mark.parametrize("refusal", IMPERFECT)
async def test_imperfect_refusal_in_a_handler_is_no_error(refusal):
    peer, seen = await visit(refusal())
    assert peer.closed[0] in {1011, 1013}
    assert not events_of(SessionFailed, seen)


@pytest.mark.anyio
@pytest.mark.parametrize("refusal", IMPERFECT)
async def test_imperfect_refusal_of_a_shadow_admits(refusal):
    seen = []
    guard = Guard(Settings(), gate=Shadow(Rooms(refusal)), observers=[seen.append])
    peer = await Peer().visit(CloseCodeMiddleware(Handler(), guard))
    assert peer.closed == (1000, "") if "close" in peer.heard else peer.heard == ["accept"]
    assert [refused.mode for refused in events_of(SessionRefused, seen)] == ["shadow"]
    assert not events_of(GateFailed, seen)


@pytest.mark.anyio
async def test_shadow_refuses_nobody_in_admit_itself():
    """The gates that hold nothing refuse before their place is entered."""
    seen = []
    guard = Guard(Settings(), gate=Shadow(HandshakeRate(0)), observers=[seen.append])
    assert (await Peer().visit(CloseCodeMiddleware(Handler(), guard))).heard == ["accept"]
    assert [refused.mode for refused in events_of(SessionRefused, seen)] == ["shadow"]


@pytest.mark.anyio
@pytest.mark.parametrize(("given", "sent"), HOSTILE[:8], ids=IDS[:8])
async def test_shed_with_an_imperfect_cause_sheds(given, sent):
    seen = []
    guard = Guard(Settings(), observers=[seen.append])
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        [session] = guard.sessions
        assert await session.shed(**given)
        await wait_until(lambda: events_of(SessionShed, seen))
        assert stay.codes() == [1013]
    assert events_of(SessionShed, seen)[0].cause == sent["cause"]


@pytest.mark.anyio
async def test_repair_is_reported_once_for_each_gate(caplog):
    class Halls(Rooms):
        pass

    seen = []
    gates = [kind(*[refuse_with({"cause": f"room {number}"}) for number in range(50)]) for kind in (Rooms, Halls)]
    guard = Guard(Settings(log_burst=None), gate=AllOf(*gates), observers=[seen.append])
    for _ in range(100):
        await Peer().visit(CloseCodeMiddleware(Handler(), guard))
    assert [refused.gate for refused in events_of(SessionRefused, seen)] == ["rooms"] * 50 + ["halls"] * 50
    repaired = events_of(CloseRepaired, seen)
    assert [(event.gate, event.asked) for event in repaired] == [
        ("rooms", "cause='room 0'"),
        ("halls", "cause='room 0'"),
    ]
    records = [record for record in caplog.records if "repaired" in vars(record)["event.name"]]
    assert [record.levelname for record in records] == ["WARNING"] * 2
    assert "gate rooms closed with cause='room 0', which must not be sent; sent 1013 " in records[0].message


class Tables(MaxSessions):
    cause = "no tables"
    is_overload = False


@pytest.mark.anyio
@pytest.mark.parametrize("shadow", [Shadow, lambda gate: gate])
async def test_refusal_of_a_gate_s_subclass_is_repaired(shadow):
    """It says what its class says, and whom its refusals concern."""
    seen = []
    guard = Guard(gate=shadow(Tables(0)), observers=[seen.append])
    for _ in range(3):
        peer = await Peer().visit(CloseCodeMiddleware(Handler(), guard))
    refusals = events_of(SessionRefused, seen)
    assert [(one.cause, one.gate, one.usage, one.limit, one.is_overload) for one in refusals] == [
        ("no_tables", "tables", 0, 0, False)
    ] * 3
    assert refusals[0].mode == "shadow" or peer.closed[1].endswith("; cause=no_tables")
    [repaired] = events_of(CloseRepaired, seen)
    assert repaired.asked == "cause='no tables'"


@pytest.mark.anyio
async def test_repairs_of_many_routes_are_reported_so_often():
    seen = []
    guard = Guard(Settings(), observers=[seen.append])
    for number in range(300):
        handler = Handler(TryAgainLater(cause="a b"))
        await Peer(route=SimpleNamespace(path_format=f"/{number}")).visit(CloseCodeMiddleware(handler, guard))
    assert 1 < len(events_of(CloseRepaired, seen)) <= 257


@pytest.mark.anyio
@pytest.mark.parametrize("cause", ["a b", 5, "raises"])
async def test_gate_with_an_imperfect_cause_sheds(cause):
    """The ticker, which makes the refusal, goes on."""

    class Crowded:
        limit = 1

        def admit(self, _session):
            return NO_PERMIT

        def excess(self):
            return 1

        @property
        def cause(self):
            return 1 / 0 if cause == "raises" else cause

    guard = Guard(Settings(), gate=Crowded())
    async with ConnectedClients(guard) as stay:
        await stay.come(1)
        await wait_until(lambda: stay.codes() == [1013])


def fails(_error):
    raise RuntimeError("in the mapping")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "function",
    [fails, *(lambda _error, answer=answer: answer for answer in ("nonsense", 99999, True, Close(1006, "why")))],
)
async def test_mapping_that_fails_is_reported_and_leaves_an_error(function):
    """A mapping that fails is reported, and the exception is an error."""
    error = KeyError("k")
    peer, events = await visit(error, exceptions={KeyError: function})
    assert peer.closed[0] == 1011
    [failed] = events_of(CallbackFailed, events)
    assert failed.callback == "exceptions"
    assert events_of(SessionFailed, events)[0].exception is error


@pytest.mark.anyio
async def test_async_function_in_a_mapping_is_reported_without_warning():
    coroutines = []

    async def decide(_error):
        return 4000

    def function(error):
        coroutines.append(decide(error))
        return coroutines[-1]

    peer, events = await visit(KeyError("k"), exceptions={KeyError: function})
    assert peer.closed[0] == 1011
    assert isinstance(events_of(CallbackFailed, events)[0].exception, TypeError)
    never_awaited = inspect.getcoroutinestate(coroutines[0]) != inspect.CORO_CLOSED
    coroutines[0].close()
    assert not never_awaited
