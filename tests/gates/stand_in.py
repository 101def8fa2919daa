"""Stand-ins for what gates see: sessions, clocks, sensors."""


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

    def end_soon(self, refusal):
        self.is_leaving = True
        self.ended.append(refusal)

    def when_answered(self, call):
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
