"""All applications of this folder in one server: /litestar.both/echo is /echo of ``both`` in app_litestar.py."""

import importlib


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    _, name, path = scope["path"].split("/", 2)
    module, attribute = name.split(".")
    below = getattr(importlib.import_module(f"tests.integrations.app_{module}"), attribute)
    await below({**scope, "path": f"/{path}", "raw_path": f"/{path}".encode()}, receive, send)
