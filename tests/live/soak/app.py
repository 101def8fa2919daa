"""The application of the soak: the handlers, behind the middleware or bare, and what asks and changes over HTTP.

``GET /state`` returns what is to be judged, ``GET /`` that the event loop turns; the other paths are ``CONTROLS``.
"""

import asyncio
import ctypes
import faulthandler
import gc
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from urllib.parse import unquote

import anyio
import anyio.to_thread
from prometheus_client import REGISTRY
from starlette.responses import JSONResponse

from asgi_closecodes import CloseCodeMiddleware, Guard, Session, Settings, TryAgainLater, concurrency
from asgi_closecodes.gates import AllOf, MaxSessionsPerKey
from asgi_closecodes.logs import configure_logging
from asgi_closecodes.session import protocol
from asgi_closecodes.telemetry.prometheus import PrometheusObserver

from . import servers
from .handlers import HANDLERS, MAPPING

LONGEST = 8.0
"""Seconds that a handler may take: not every server tells of every departure."""

configure_logging(format="json")
faulthandler.register(signal.SIGUSR1)  # where is it, while it does not answer?
protocol.CLOSE_TIMEOUT_S = 2.0  # there are many peers that do not read, and little time
random.seed(os.environ.get("SOAK_SEED"))
servers.contain_connections()


class Moody:
    """A gate of the user's that refuses, fails or dawdles every other time, when it is told to."""

    def __init__(self):
        self.mood = "works"
        self.active = 0

    @asynccontextmanager
    async def admit(self, session):
        mood = random.choice(("works", self.mood))
        if mood == "refuses":
            raise TryAgainLater(cause="mood", retry_after=0.1)
        if mood == "fails":
            raise ZeroDivisionError
        if mood == "dawdles":
            await anyio.sleep(random.uniform(0, 0.5))
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1
            if mood == "fails at the end":
                raise ZeroDivisionError


class Recorder:
    """An observer that counts events, and raises when it is told to."""

    def __init__(self):
        self.counts = Counter()
        self.raises = False

    def __call__(self, event):
        name = type(event).__name__
        if name == "LogsSuppressed":
            name += f" {event.event}"
        elif getattr(event, "mode", None) == "shadow":
            name += " shadow"
        self.counts[name] += getattr(event, "count", 1)
        if self.raises:
            raise ZeroDivisionError


moody, recorder, cut_off = Moody(), Recorder(), Counter()
few_of_a_key = MaxSessionsPerKey(3, key=lambda session: session.key)
guard = Guard(
    Settings(),
    gate=AllOf(moody, few_of_a_key),
    exceptions=MAPPING,
    observers=[recorder, PrometheusObserver()],
)


def by_age(session):
    return -session.arrived_at


def by_a_bug(session):
    raise ZeroDivisionError


# What can be changed


async def update(changes):
    """Change settings in the event loop, in a thread of anyio's, or in any thread."""
    orders = {"by_age": by_age, "by_a_bug": by_a_bug}
    if "shed" in changes:
        changes["shed"] = orders.get(changes["shed"], changes["shed"])
    match random.randrange(3):
        case 0:
            guard.update(**changes)
        case 1:
            await anyio.to_thread.run_sync(lambda: guard.update(**changes))
        case 2:
            await _in_a_plain_thread(lambda: guard.update(**changes))


async def _in_a_plain_thread(call):
    problems = []

    def run():
        try:
            call()
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        await anyio.sleep(0.01)
    if problems:
        raise problems[0]


async def drain(options):
    """Drain, and call it off sooner or later than everybody has left."""

    async def call_off():
        await anyio.sleep(options["seconds"])
        guard.draining = False

    concurrency.spawn(guard.drain, options["window"])
    concurrency.spawn(call_off)


async def shed(options):
    for session in random.sample([*guard.sessions], min(options["count"], len(guard.sessions))):
        session.schedule_close(TryAgainLater(cause="kicked"))


async def behave(options):
    moody.mood = options.get("mood", moody.mood)
    recorder.raises = options.get("raises", recorder.raises)
    few_of_a_key.when_full = options.get("when_full", few_of_a_key.when_full)


async def stall(options):
    time.sleep(options["seconds"])


async def calm(_options):
    """Put everything back to where it was at the start."""
    guard.update(**Settings.model_construct().model_dump())
    guard.draining = False
    moody.mood, recorder.raises = "works", False


CONTROLS = {function.__name__: function for function in (update, drain, shed, behave, stall, calm)}


async def state(_options):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else it would be the allocator's habits that are measured
    return {
        "pid": os.getpid(),
        "rss": int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": sorted(filter(None, map(_target, os.listdir("/proc/self/fd")))),
        "tasks": _tasks(),
        "session objects": sum(type(thing) is Session for thing in gc.get_objects()),
        "snapshot": guard.snapshot(),
        "events": recorder.counts,
        "metrics": [
            (sample.name, sample.labels, sample.value)
            for family in REGISTRY.collect()
            for sample in family.samples
            if sample.name.startswith("closecodes_sessions_active") or sample.name.endswith("_total")
        ],
        "cut off": cut_off,
    }


def _target(descriptor):
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # that of the list itself
        return None


def _tasks():
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        import trio

        return trio.lowlevel.current_statistics().tasks_living


# What is served


async def handlers(scope, receive, send):
    """Run the handler whose name the path is, for a limited time."""
    name = scope["path"].strip("/")
    with anyio.move_on_after(LONGEST) as limit:
        await HANDLERS.get(name, HANDLERS["echo"])(scope, receive, send)
    if limit.cancelled_caught:
        cut_off[name] += 1


async def live(scope, receive, send):
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def control(scope, receive, send):
    name = scope["path"].strip("/")
    options = json.loads(unquote(scope["query_string"].decode("latin-1")) or "{}")
    answer, status = {}, 200
    try:
        if name == "state":
            answer = await state(options)
        elif name:
            await CONTROLS[name](options)
    except Exception as error:
        answer, status = {"error": repr(error)}, 500
    await JSONResponse(answer, status, {"connection": "close"})(scope, receive, send)


async def bare(scope, receive, send):
    serve = {"websocket": handlers, "http": control, "lifespan": live}[scope["type"]]
    await serve(scope, receive, send)


wrapped = CloseCodeMiddleware(bare, guard)
