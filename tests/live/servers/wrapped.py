"""The same handlers behind the middleware; the first segment of the path may choose a guard of its own."""

from datetime import timedelta

import anyio
import anyio.from_thread
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse

from asgi_closecodes import Close, CloseCodeMiddleware, CloseWith, Guard, Settings, TryAgainLater
from asgi_closecodes.gates import MaxSessionsPerKey
from asgi_closecodes.logs import configure_logging
from asgi_closecodes.session import protocol
from tests.support.framework import installed

from .apps import SECRET, bare, ending, impatient

configure_logging(format="json")
protocol.CLOSE_TIMEOUT_S = 1.0  # tests wait for it


class Mapped(Exception):
    pass


@ending()
async def raise_close_with(scope, receive, send):
    raise CloseWith(4001, "as asked")


@ending(accept=False)
async def raise_close_with_before_accept(scope, receive, send):
    raise CloseWith(4001, "as asked")


@ending()
async def raise_try_again_later(scope, receive, send):
    raise TryAgainLater(cause="database", retry_after=7.25)


@ending()
async def raise_a_group_that_agrees(scope, receive, send):
    raise ExceptionGroup("all", [CloseWith(4001, "as asked"), ExceptionGroup("more", [CloseWith(4001, "as asked")])])


@ending()
async def raise_what_is_mapped(scope, receive, send):
    raise Mapped


@ending()
async def raise_several_mapped(scope, receive, send):
    raise ExceptionGroup("all", [Mapped(), Mapped()])


def caught(error):
    """Return ``error`` as one that was raised and caught."""
    try:
        raise error
    except Exception as same:
        return same


@ending()
async def fail_in_the_handler(scope, receive, send):
    session = scope["extensions"]["closecodes"]
    assert await session.fail(caught(ValueError(SECRET)))
    assert not await session.fail(caught(ValueError(SECRET)))


@ending()
async def fail_in_a_task(scope, receive, send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope["extensions"]["closecodes"].fail, caught(ValueError(SECRET)))
        assert (await receive())["type"] == "websocket.disconnect"


@ending()
async def fail_in_a_thread(scope, receive, send):
    fail = scope["extensions"]["closecodes"].fail
    await anyio.to_thread.run_sync(anyio.from_thread.run, fail, caught(ValueError(SECRET)))


@ending()
async def fail_with_what_is_mapped(scope, receive, send):
    await scope["extensions"]["closecodes"].fail(Mapped())


@ending()
async def raise_in_a_framework(scope, receive, send):
    async def handler():
        raise TryAgainLater(cause="database", retry_after=7.25)

    await installed["run"](handler, send, installed["close"])


@ending()
async def raise_a_failure_in_a_framework(scope, receive, send):
    async def handler():
        raise ValueError(SECRET)

    await installed["run"](handler, send, installed["close"])


GUARDS = {
    "": Guard(exceptions={Mapped: Close(4002, "mapped")}),
    "one": Guard(Settings(max_sessions=1, reject_with="close")),
    "http": Guard(Settings(max_sessions=0, reject_with="http")),
    "auto": Guard(Settings(max_sessions=0, reject_with="auto")),
    "few": Guard(Settings(max_sessions=0, reject_with="close", max_refusals_per_second=1)),
    "early": Guard(Settings(deliver_early_closes=True)),
    "early-http": Guard(Settings(deliver_early_closes=True, reject_with="http")),
    "keyed": Guard(gate=MaxSessionsPerKey(1, key=lambda session: session.scope["query_string"])),
    "reraise": Guard(Settings(reraise=True)),
    "private": Guard(Settings(error_code=4011, try_again_code=4013)),
    "debug": Guard(Settings(debug=True)),
    "bald": Guard(Settings(max_sessions=1, reject_with="close")),
    "shed": Guard(Settings(shed_grace=1)),
    "offers": Guard(Settings(max_sessions=0, reject_with="close"), subprotocol=lambda offered: offered[-1]),
}
MIDDLEWARE = {name: CloseCodeMiddleware(bare, guard) for name, guard in GUARDS.items()}


@impatient
async def wrapped(scope, receive, send):
    name = ""
    if scope["type"] == "http":
        request = Request(scope)
        guard = GUARDS.get(scope["path"].removeprefix("/"))
        if "shed" in request.query_params:
            for session in list(guard.sessions):
                await session.shed("test", retry_after=2)
        elif "expires_in" in request.query_params:
            for session in list(guard.sessions):
                session.expires_at = timedelta(seconds=float(request.query_params["expires_in"]))
        elif "sign_out" in request.query_params:
            await guard.close_sessions(lambda _session: True, int(request.query_params["sign_out"]), "signed out")
        elif "drain" in request.query_params:
            await guard.drain(float(request.query_params["drain"]))
            guard.draining = False
        elif guard is not None and request.query_params:
            guard.update(**{name: None if value == "None" else value for name, value in request.query_params.items()})
        snapshots = {name: guard.snapshot() for name, guard in GUARDS.items()}
        await JSONResponse(snapshots)(scope, receive, send)
        return
    if scope["type"] == "websocket":
        first, _, rest = scope["path"].removeprefix("/").partition("/")
        if rest and first in GUARDS:
            name = first
            scope = {**scope, "path": f"/{rest}"}
        if first == "bald":
            scope = {key: value for key, value in scope.items() if key not in {"asgi", "extensions", "client"}}
    await MIDDLEWARE[name](scope, receive, send)
