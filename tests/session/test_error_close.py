"""A framework's close for an error that it keeps to itself is told of, where an integration names its code."""

import pytest

from asgi_closecodes import Close, CloseCodeMiddleware, Guard, Settings, events
from tests.support.asgi import Peer, events_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("named", "accept", "sent", "is_told"),
    [
        (4500, True, (4500,), True),
        (4500, True, (4500, 4500), True),  # once
        (4500, True, (4501,), False),
        (4500, False, (4500,), False),  # HTTP answers
        (None, True, (4500,), False),
        (None, True, (None,), False),
        (4500, True, (None,), False),
    ],
)
async def test_error_close_of_named_code_is_told_once(named, accept, sent, is_told):
    async def app(scope, receive, send):
        await receive()
        if accept:
            await send({"type": "websocket.accept"})
        if named is not None:
            scope["closecodes.error_code"] = named
        for code in sent:
            await send({"type": "websocket.close", "reason": "log in"} | ({} if code is None else {"code": code}))

    seen, peer = [], Peer()
    await peer.visit(CloseCodeMiddleware(app, Guard(Settings(), observers=[seen.append])))
    told = events_of(events.SessionClosedWithError, seen)
    assert [event.close for event in told] == ([Close(4500, "log in")] if is_told else [])
    [closed] = events_of(events.SessionClosed, seen)
    assert closed.outcome == ("completed" if accept else "not_accepted")
