"""Stand-ins for what gates see: sessions, clocks, sensors."""

import anyio
import anyio.to_thread

from asgi_closecodes import CloseCodeMiddleware

from .asgi import Handler, Peer


class Clock:
    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


class Visitor:
    """As much of a session as gates need; each is another one."""

    def __init__(self, client=("192.0.2.7", 1), **rest):
        self.scope = {"client": client}
        self.is_leaving = False
        self.ended = []
        self.answered = []
        vars(self).update({"priority": 0, "shed_exempt": False, "arrived_at": 0.0, "message_count": 0, **rest})

    def schedule_close(self, refusal):
        self.is_leaving = True
        self.ended.append(refusal)

    def on_handshake_answered(self, call):
        self.answered.append(call)

    def answer(self):
        for call in self.answered:
            call(self)


class Dial:
    """A sensor that shows what it is set to."""

    name = "dial"

    def __init__(self, shown=0.0):
        self.shown = shown

    def sample(self):
        pass

    def value(self):
        return self.shown


async def admitted(gate, session=None):
    """Whether ``gate`` lets a session in, which stays."""
    from asgi_closecodes import TryAgainLater

    try:
        await gate.admit(session or Visitor()).__aenter__()
    except TryAgainLater:
        return False
    return True


async def refused(gate, session=None):
    """The refusal of ``gate``."""
    from asgi_closecodes import TryAgainLater

    try:
        await gate.admit(session or Visitor()).__aenter__()
    except TryAgainLater as refusal:
        return refusal
    raise AssertionError("was admitted")


def of_key(session):
    return session.key


class Keyed:
    """A handler that sets the key that the path says, ``before`` or ``after`` it accepts, and waits for its peer."""

    def __init__(self, when="before"):
        self.when = when

    async def __call__(self, scope, receive, send):
        await receive()
        for moment in ("before", "accept", "after"):
            if moment == "accept":
                await send({"type": "websocket.accept"})
            elif moment == self.when:
                scope["extensions"]["closecodes"].key = scope["path"].strip("/")
        while (await receive())["type"] != "websocket.disconnect":
            pass


class Guest(Peer):
    """A peer that stays."""

    def __init__(self, gone, **scope):
        super().__init__(**scope)
        self.gone = gone

    async def receive(self):
        if len(self._says) == 1:
            await self.gone.wait()
        return await super().receive()


class Stay:
    """Peers that stay until they are told to leave."""

    def __init__(self, guard, handler=None):
        self.app = CloseCodeMiddleware(handler or Handler(), guard)
        self.peers = []
        self.gone = anyio.Event()

    async def __aenter__(self):
        self.tasks = anyio.create_task_group()
        await self.tasks.__aenter__()
        return self

    async def __aexit__(self, *error):
        self.gone.set()
        return await self.tasks.__aexit__(*error)

    async def come(self, count, **scope):
        for _ in range(count):
            peer = Guest(self.gone, **scope)
            self.peers.append(peer)
            self.tasks.start_soon(peer.visit, self.app)
            while not peer.sent:
                await anyio.sleep(0)

    def codes(self):
        return [peer.closed[0] if "close" in peer.heard else None for peer in self.peers]


async def until(condition):
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.01)
