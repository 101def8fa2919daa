"""As many gates as there are processes, and the sessions in them."""

import asyncio

import anyio
from click.testing import CliRunner

from asgi_closecodes import TryAgainLater
from asgi_closecodes.cli.cluster import cluster
from asgi_closecodes.gates import ClusterSessions
from tests.support.asgi import events_of
from tests.support.fakes import FakeSession

TTL = 2.0


class Processes:
    """Gates of one cluster limit, one for each process, and what they tell."""

    def __init__(self):
        self.gates = []
        self.told = []
        self.places = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        for gate in self.gates:
            await gate.stop()
        assert not [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "logged"]

    def add(self, limit, url, lease_duration=TTL, **options):
        gate = ClusterSessions(limit, url, lease_duration=lease_duration, **options)
        gate.attach(self.told.append)
        self.gates.append(gate)
        return gate

    async def enter(self, gate):
        place = gate.admit(FakeSession())
        try:
            await place.__aenter__()
        except TryAgainLater:
            return False
        self.places.append((gate, place))
        return True

    async def come(self, count, *gates):
        """How many of ``count`` sessions are admitted."""
        gates = gates or self.gates
        return sum(await asyncio.gather(*(self.enter(gates[number % len(gates)]) for number in range(count))))

    async def fill(self, count, *gates):
        """Let sessions come until ``count`` are open."""
        with anyio.fail_after(60):
            while self.open < count:
                await self.come(count - self.open, *gates)
                self.look()
                await anyio.sleep(0.02)

    def look(self):
        for gate in self.gates:
            gate.sample()

    async def end(self, gate, count):
        mine = [pair for pair in self.places if pair[0] is gate][:count]
        for pair in mine:
            self.places.remove(pair)
            await pair[1].__aexit__(None, None, None)

    @property
    def open(self):
        return len(self.places)

    async def until(self, condition, seconds=60):
        with anyio.fail_after(seconds):
            while not condition():
                self.look()
                await anyio.sleep(0.02)

    def of(self, kind):
        return events_of(kind, self.told)


def is_left_behind(server):
    """The clients that the server still has, besides the one that asks."""
    return [
        line
        for line in server.command("CLIENT", "LIST").decode().splitlines()
        if "cmd=client" not in line.replace("|list", "")
    ]


def status(*arguments):
    """Run the command that shows a cluster."""
    return CliRunner().invoke(cluster, ["status", *arguments])
