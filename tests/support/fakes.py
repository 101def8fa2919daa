"""Fakes for tests of gates: sessions, clocks, sensors."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_closecodes import CloseCodeMiddleware, Guard, TryAgainLater

from .asgi import Handler, Peer


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeSession:
    """Fake session with what gates use."""

    def __init__(self, client: object = ("192.0.2.7", 1), **rest: Any) -> None:
        self.scope = {"client": client}
        self.is_leaving = False
        self.ended: list[TryAgainLater] = []
        self.answered: list[Callable[[Any], object]] = []
        vars(self).update({"priority": 0, "shed_exempt": False, "arrived_at": 0.0, "message_count": 0, **rest})

    def schedule_close(self, refusal: TryAgainLater) -> None:
        self.is_leaving = True
        self.ended.append(refusal)

    def on_handshake_answered(self, call: Callable[[Any], object]) -> None:
        self.answered.append(call)

    def answer(self) -> None:
        for call in self.answered:
            call(self)


class FakeSensor:
    """Sensor that returns the value it was set to."""

    name = "dial"

    def __init__(self, shown: float | None = 0.0) -> None:
        self.shown = shown

    def sample(self) -> None:
        pass

    def value(self) -> float | None:
        return self.shown


async def admitted(gate: Any, session: object = None) -> bool:
    """Whether ``gate`` admits a session, which then stays."""
    try:
        await gate.admit(session or FakeSession()).__aenter__()
    except TryAgainLater:
        return False
    return True


async def refused(gate: Any, session: object = None) -> TryAgainLater:
    """Return the refusal of ``gate``."""
    try:
        await gate.admit(session or FakeSession()).__aenter__()
    except TryAgainLater as refusal:
        return refusal
    raise AssertionError("was admitted")


def of_key(session: Any) -> Any:
    return session.key


class Keyed:
    """Handler that sets the key in the path, ``before`` or ``after`` it accepts, and waits for its peer."""

    def __init__(self, when: str = "before") -> None:
        self.when = when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for moment in ("before", "accept", "after"):
            if moment == "accept":
                await send({"type": "websocket.accept"})
            elif moment == self.when:
                scope["extensions"]["closecodes"].key = scope["path"].strip("/")
        while (await receive())["type"] != "websocket.disconnect":
            pass


class StayingClient(Peer):
    """Peer that stays until ``gone`` is set."""

    def __init__(self, gone: anyio.Event, **scope: Any) -> None:
        super().__init__(**scope)
        self.gone = gone

    async def receive(self) -> Message:
        if len(self._says) == 1:
            await self.gone.wait()
        return await super().receive()


class ConnectedClients:
    """Context manager with peers that stay until its block ends."""

    def __init__(self, guard: Guard, handler: ASGIApp | None = None) -> None:
        self.app = CloseCodeMiddleware(handler or Handler(), guard)
        self.peers: list[StayingClient] = []
        self.gone = anyio.Event()

    async def __aenter__(self) -> Self:
        self.tasks = anyio.create_task_group()
        await self.tasks.__aenter__()
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self.gone.set()
        return await self.tasks.__aexit__(cls, error, trace)

    async def come(self, count: int, **scope: Any) -> None:
        for _ in range(count):
            peer = StayingClient(self.gone, **scope)
            self.peers.append(peer)
            self.tasks.start_soon(peer.visit, self.app)
            while not peer.sent:
                await anyio.sleep(0)

    def codes(self) -> list[int | None]:
        return [peer.closed[0] if "close" in peer.heard else None for peer in self.peers]


async def settle() -> None:
    """Let each task go on until it waits for something.

    ``anyio.wait_all_tasks_blocked()`` may never return beside a guard: on asyncio it looks every 100 ms, as often as a
    guard ticks, and may find it awake each time.
    """
    for _ in range(30):
        await anyio.lowlevel.checkpoint()


async def wait_until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.01)
