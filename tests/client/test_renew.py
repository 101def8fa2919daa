"""New credentials after 3000, in the client that reconnects."""

import time
from contextlib import asynccontextmanager

import anyio
import pytest

from asgi_closecodes import Close
from asgi_closecodes.client import Backoff, Connecting, Ended, GaveUp, Opened, connect
from tests.support.client_rule import seen

from .following import eager, follow, living, no_task_left

pytestmark = pytest.mark.anyio


class Renewal:
    """A ``renew`` that counts its calls, and returns or raises ``outcome``."""

    def __init__(self, outcome=None):
        self.outcome = outcome
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class AsyncRenewal(Renewal):
    async def __call__(self):
        await anyio.lowlevel.checkpoint()
        return super().__call__()


BOTH = pytest.mark.parametrize("kind", [Renewal, AsyncRenewal])


def ends(events):
    return [(event.close.code, event.retry_in) for event in events if isinstance(event, Ended)]


@BOTH
@pytest.mark.parametrize(
    "changes", [{"headers": {"authorization": "new"}}, {"subprotocols": ["new"]}, {"url": "{url}?token=new"}]
)
async def test_renew_replaced_arguments_are_used_from_then_on(server, key, kind, changes):
    url = f"{server.url}/protect/{key}/,1012,1000"
    changes = {name: value.format(url=url) if name == "url" else value for name, value in changes.items()}
    renew = kind(changes)
    events, _ = await follow(url, renew=renew, headers={"authorization": "old"}, backoff=eager())
    assert ends(events) == [(3000, 0), (1012, 0.01), (1000, None)]
    assert renew.calls == 1


async def test_renew_after_http_401_reconnects(server, key):
    renew = Renewal({"headers": {"authorization": "new"}})
    events, _ = await follow(f"{server.url}/protect/{key}/,1000?status=401", renew=renew)
    assert [type(event) for event in events] == [Connecting, Ended, Connecting, Opened, Ended]
    assert (events[1].status, events[1].retry_in) == (401, 0)


@BOTH
async def test_renew_second_3000_gives_up(server, key, kind):
    renew = kind()
    events, _ = await follow(f"{server.url}/close/{key}/3000", renew=renew)
    assert ends(events) == [(3000, 0), (3000, None)]
    assert str(events[-1]) == "attempt 2 was the last: the session ended with 3000"
    assert events[-1].__cause__ is None
    assert renew.calls == 1


async def test_renew_after_five_seconds_open_is_called_again(server, key):
    in_a_hurry = Backoff(clock=lambda: 1000 * anyio.current_time())
    renew = Renewal()
    events, _ = await follow(f"{server.url}/close/{key}/3000,3000,1000?seconds=0.2", renew=renew, backoff=in_a_hurry)
    assert ends(events) == [(3000, 0), (3000, 0), (1000, None)]
    assert renew.calls == 2


@pytest.mark.parametrize("code", [1008, 3003, 4001])
async def test_renew_after_other_codes_is_not_called(server, key, code):
    renew = Renewal()
    events, _ = await follow(f"{server.url}/close/{key}/{code}", renew=renew)
    assert isinstance(events[-1], GaveUp)
    assert renew.calls == 0


@BOTH
async def test_renew_that_raises_gives_up_with_its_error(server, key, kind, caplog):
    error = LookupError("hunter2")
    url = f"{server.url}/close/{key}/3000?reason=no"
    async with no_task_left():
        events, _ = await follow(url, renew=kind(error), backoff=eager())
    assert [type(event) for event in events] == [Connecting, Opened, Ended, Ended, GaveUp]
    *_, first, second, gave_up = events
    assert first == Ended(1, Close(3000, "no"), None, None, 0)
    assert second == Ended(1, Close(3000, "no"), None, None, None, error)
    assert (gave_up.last, gave_up.__cause__) == (second, error)
    assert str(gave_up) == "attempt 1 was the last: renew failed (LookupError) after 3000"
    assert "hunter2" not in caplog.text
    assert len(seen(server)["attempts"][f"/close/{key}/3000"]) == 1


@BOTH
@pytest.mark.parametrize("returned", ["hunter2", ["hunter2"], 7])
async def test_renew_that_returns_no_mapping_gives_up(server, key, kind, returned):
    events, _ = await follow(f"{server.url}/close/{key}/3000", renew=kind(returned))
    cause = events[-1].__cause__
    assert isinstance(cause, TypeError)
    assert "return a mapping" in str(cause)


async def test_renew_that_returns_an_unknown_argument_raises(server, key):
    with pytest.raises(TypeError, match="no_such_option"):
        await follow(f"{server.url}/close/{key}/3000", renew=lambda: {"no_such_option": 1})


async def test_renew_after_3000_with_hint_waits_for_it(server, key):
    called_at = []
    path = f"/close/{key}/3000,1000"
    url = f"{server.url}{path}?reason=x; retry_after=0.3"
    await follow(url, renew=lambda: called_at.append(time.monotonic()))
    assert called_at[0] - seen(server)["attempts"][path][0] >= 0.3


@asynccontextmanager
async def renewing(server, key):
    """A loop in its ``renew``, which waits to be let go; yields its sessions, the events and the event."""
    began, go, events = anyio.Event(), anyio.Event(), []

    async def renew():
        began.set()
        await go.wait()

    sessions = connect(f"{server.url}/close/{key}/3000,1000", renew=renew, on_event=events.append)

    async def run():
        async for session in sessions:
            async for _ in session:
                pass

    before = living()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await began.wait()
            yield sessions, events, go, tasks.cancel_scope
    assert living() == before


async def test_renew_cancelled_ends_the_loop(server, key):
    async with renewing(server, key) as (sessions, events, _, scope):
        scope.cancel()
    assert ends(events) == [(3000, 0)]
    assert [session async for session in sessions] == []


async def test_renew_while_closed_connects_no_more(server, key):
    async with renewing(server, key) as (sessions, events, go, _):
        await sessions.aclose()
        go.set()
    assert [type(event) for event in events] == [Connecting, Opened, Ended]


async def test_back_off_while_closed_connects_no_more(server, key):
    waiting, events = anyio.Event(), []

    def note(event):
        events.append(event)
        if isinstance(event, Ended):
            waiting.set()

    sessions = connect(f"{server.url}/close/{key}/1012", on_event=note, backoff=Backoff(random=lambda: 0.2))

    async def run():
        async for session in sessions:
            async for _ in session:
                pass

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await waiting.wait()
            await sessions.aclose()
    assert [type(event) for event in events] == [Connecting, Opened, Ended]


async def test_renew_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="renew='new' is not callable; use a function"):
        connect("ws://127.0.0.1", renew="new")
