"""The template of the route, where a framework leaves one, and the path as the client sent it."""

import pytest
from starlette.routing import Mount

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, events
from asgi_closecodes.session.scope import route_of
from tests.support.asgi import Peer, events_of

SERVERS = {"type": "websocket", "path": "/crash/7", "root_path": "/api"}


class Handler:
    def __init__(self, is_mount):
        self.is_mount = is_mount


@pytest.mark.parametrize(
    ("left", "route"),
    [
        ({"path_template": "/crash/{name}"}, "/crash/{name}"),
        ({"path_template": "/crash/{name}", "route_handler": Handler(is_mount=False)}, "/crash/{name}"),
        ({"path_template": "/", "route_handler": Handler(is_mount=True)}, None),  # whatever is below
        ({"path_template": "/crash/{name}", "root_path": "/api/of/7"}, None),  # mounted: what of that is a parameter?
        ({"path_template": 7}, None),
        ({"path_template": None}, None),
        ({"path_template": "/crash/{name}", "route": Mount("/of", routes=[])}, None),
        ({}, None),
    ],
)
def test_route_is_the_template_if_it_is_sure(left, route):
    assert route_of({**SERVERS, **left}, SERVERS) == route


@pytest.mark.anyio
async def test_path_is_that_of_the_client_whatever_is_left():
    async def app(scope, receive, send):
        scope["path"] = "/changed"
        raise ValueError

    seen, peer = [], Peer()
    await peer.visit(CloseCodeMiddleware(app, Guard(Settings(), observers=[seen.append])))
    [failed] = events_of(events.SessionFailed, seen)
    assert failed.session.path == peer.scope["path"] != "/changed"
