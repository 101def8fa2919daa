"""A server to measure: a handler for each way in which that may go wrong, and what it has seen at /state."""

import json

from asgi_closecodes import CloseCodeMiddleware

APP = "tests.cli.capacity.app:wrapped"

FRAGILE = 12
"""Sessions that /fragile holds."""

seen = {"open": 0, "most": 0, "extensions": None, "texts": []}


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(seen).encode()})
    elif scope["type"] == "websocket":
        seen["open"] += 1
        seen["most"] = max(seen["most"], seen["open"])
        try:
            await HANDLERS[scope["path"]](scope, receive, send)
        finally:
            seen["open"] -= 1


def header(scope, name):
    return dict(scope["headers"]).get(name, b"").decode()


async def echo(scope, receive, send, answers=True):
    seen["extensions"] = header(scope, b"sec-websocket-extensions")
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        seen["texts"] = [message["text"], *seen["texts"]][:3]
        if answers:
            await send({"type": "websocket.send", "text": message["text"]})


async def mute(scope, receive, send):
    await echo(scope, receive, send, answers=False)


async def fragile(scope, receive, send):
    if seen["open"] > FRAGILE:
        raise RuntimeError("too many")
    await echo(scope, receive, send)


async def cookie(scope, receive, send):
    if header(scope, b"cookie") != "session=secret-7":
        await receive()
        await send({"type": "websocket.close"})  # before accept: HTTP 403
    else:
        await echo(scope, receive, send)


async def closes(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 4401, "reason": "who are you? \x1b[31m"})


async def answers_by_http(receive, send, status, *headers):
    await receive()
    await send({"type": "websocket.http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "websocket.http.response.body", "body": b"no"})


async def redirects(scope, receive, send):
    await answers_by_http(receive, send, 307, (b"location", b"/elsewhere"))


async def missing(scope, receive, send):
    await answers_by_http(receive, send, 404)


async def chosen(scope, receive, send):
    """Talks to those alone that offer a subprotocol."""
    await receive()
    if scope["subprotocols"] != ["v1", "v2"]:
        await send({"type": "websocket.close"})
    else:
        await send({"type": "websocket.accept", "subprotocol": "v2"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})


async def proxied(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept", "headers": [(b"via", b"1.1 somebody")]})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


HANDLERS = {
    "/": echo,
    "/mute": mute,
    "/fragile": fragile,
    "/cookie": cookie,
    "/closes": closes,
    "/redirects": redirects,
    "/missing": missing,
    "/proxied": proxied,
    "/chosen": chosen,
}

wrapped = CloseCodeMiddleware(app)
