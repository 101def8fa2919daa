"""The handler of SIGTERM, without a server."""

import asyncio
import signal
from types import SimpleNamespace

import pytest

from asgi_closecodes import Guard, Settings
from asgi_closecodes.concurrency import EventLoop
from asgi_closecodes.events import DrainWindowTooLong
from asgi_closecodes.guard import sigterm
from asgi_closecodes.guard.sigterm import SAME_SIGNAL_S, SigtermHandler, arm
from tests.support.asgi import events_of
from tests.support.fakes import wait_until


class Server:
    """One whose signal handler may be chained; as uvicorn's, it knows the worker of gunicorn that it runs in."""

    def __init__(self, graceful_timeout=None):
        self.signals = []
        worker = SimpleNamespace(cfg=SimpleNamespace(graceful_timeout=graceful_timeout))
        notify = SimpleNamespace(__self__=worker) if graceful_timeout is not None else None
        self.config = SimpleNamespace(callback_notify=notify)

    def handle_exit(self, number, frame):
        self.signals.append(number)

    def __enter__(self):
        self._before = signal.signal(signal.SIGTERM, self.handle_exit)
        return self

    def __exit__(self, *error):
        signal.signal(signal.SIGTERM, self._before)


@pytest.mark.parametrize(
    ("signalled_at", "graceful_timeout", "stops"),
    [
        ([0, SAME_SIGNAL_S * 0.9], None, 0),
        ([0, SAME_SIGNAL_S], None, 1),
        ([0, 1, 2, 3, 4, 5], None, 0),
        ([0, 1, 2, 5], None, 1),
        ([0, 1, 5, 20], 30, 0),  # gunicorn's, to a worker that is busy and that it replaces
    ],
)
def test_signal_soon_after_another_is_the_same(signalled_at, graceful_timeout, stops, monkeypatch):
    server = Server(graceful_timeout)

    async def main():
        handler = SigtermHandler(server.handle_exit, EventLoop.running())
        for now in signalled_at:
            monkeypatch.setattr(sigterm, "time", SimpleNamespace(monotonic=lambda now=now: now))
            handler(signal.SIGTERM, None)
        assert len(server.signals) == stops
        monkeypatch.undo()
        await wait_until(lambda: len(server.signals) == stops + 1)  # it has drained nobody

    asyncio.run(main())


def test_guards_of_one_loop_share_a_handler_and_drain_together():
    guards = [Guard(Settings(drain_window=60)) for _ in range(2)]

    async def main():
        with Server() as server:
            handlers = {arm(guard) for guard in guards}
            assert handlers == {signal.getsignal(signal.SIGTERM)}
            [handler] = handlers
            signal.raise_signal(signal.SIGTERM)
            await wait_until(lambda: server.signals)
            assert all(guard.draining for guard in guards)
            for guard in guards:
                assert signal.getsignal(signal.SIGTERM) is handler
                handler.remove(guard)
            assert signal.getsignal(signal.SIGTERM) == server.handle_exit

    asyncio.run(main())


def test_guard_that_comes_after_the_signal_drains_at_once():
    early, late = Guard(Settings()), Guard(Settings(drain_on_sigterm=True))

    async def main():
        with Server() as server:
            arm(early)
            signal.raise_signal(signal.SIGTERM)
            arm(late)
            await wait_until(lambda: late.draining and server.signals)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("window", "graceful_timeout", "warned"), [(30, 30, 1), (30, 31, 0), (5, 4.5, 1), (30, None, 0)]
)
def test_window_that_gunicorn_does_not_wait_for_is_told(window, graceful_timeout, warned):
    seen = []
    guard = Guard(Settings(drain_window=window), observers=[seen.append])

    async def main():
        with Server(graceful_timeout):
            arm(guard)

    asyncio.run(main())
    assert events_of(DrainWindowTooLong, seen) == [DrainWindowTooLong(window, graceful_timeout)] * warned
