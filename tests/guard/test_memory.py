"""A guard under memory pressure: rounds, and the return of memory."""

import ctypes
import gc
import sys
import threading
import types

import anyio
import pytest

from asgi_closecodes import Guard, Settings, SettingsError
from asgi_closecodes.events import CallbackFailed, SheddingFutile
from asgi_closecodes.gates import Memory, Pressure, Shadow, rounds
from asgi_closecodes.guard import give_back
from asgi_closecodes.session.cycles import break_cycles
from tests.support.asgi import Peer, events_of
from tests.support.fakes import ConnectedClients, wait_until

pytestmark = pytest.mark.jumping_clock

BASE, EACH = 0.2, 0.025


class FakeMemory(Memory):
    """Memory of sessions that hold 0.025 each; once returned, it counts no more."""

    def __init__(self, returns=1.0, leaked=0.0):
        super().__init__(1)
        self.returns, self.leaked = returns, leaked
        self.guard = None
        self.most = 0
        self.is_stopped = False

    def sample(self):
        self.is_stopped = False

    def stop(self):
        self.is_stopped = True

    def value(self):
        count = 0 if self.guard is None else len(self.guard.sessions)
        self.most = max(self.most, count)
        return None if self.is_stopped else BASE + self.leaked + EACH * (self.most - self.returns * (self.most - count))


def pressed(sensor, seen, **settings):
    guard = Guard(Settings(shed_rate=1000, **settings), gate=Pressure(sensor, 1.0, 0.9, 1.1), observers=[seen.append])
    sensor.guard = guard
    return guard


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(rounds, "SETTLE_S", 0.1)
    monkeypatch.setattr(give_back, "trim", lambda: None)


@pytest.mark.anyio
async def test_memory_gate_sheds_rounds_until_usage_is_below():
    sensor, seen = FakeMemory(), []
    sensor.leaked = -0.3  # as long as they come
    guard = pressed(sensor, seen)
    async with ConnectedClients(guard) as stay:
        await stay.come(40)
        sensor.leaked = 0.0
        await wait_until(lambda: len(guard.sessions) == 35)
        await anyio.sleep(0.5)
        assert len(guard.sessions) == 35  # 0.2 and 35 * 0.025 are less than 1.1
        assert guard.snapshot()["sheds"] == {"memory": 5}
    assert not events_of(SheddingFutile, seen)


@pytest.mark.anyio
async def test_memory_gate_that_sheds_in_vain_says_so_once_and_refuses():
    sensor, seen = FakeMemory(returns=0.1), []
    sensor.leaked = -0.3
    guard = pressed(sensor, seen)
    async with ConnectedClients(guard) as stay:
        await stay.come(40)
        sensor.leaked = 0.5
        await wait_until(lambda: events_of(SheddingFutile, seen))
        left = len(guard.sessions)
        assert left >= 36
        await anyio.sleep(0.5)
        assert len(guard.sessions) == left
        refused = await Peer().visit(stay.app)
        assert refused.closed[1].endswith("cause=memory")
    [event] = events_of(SheddingFutile, seen)
    assert (event.gate, event.cause, event.limit, event.shed) == ("memory", "memory", 1.0, 40 - left)


@pytest.mark.anyio
async def test_memory_gate_waits_for_a_handler_that_cleans_up():
    sensor, seen = FakeMemory(), []
    sensor.leaked = -0.3
    guard = pressed(sensor, seen)
    done = anyio.Event()

    async def tidy(_scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        with anyio.CancelScope(shield=True):
            await done.wait()

    async with ConnectedClients(guard, tidy) as stay:
        await stay.come(40)
        sensor.leaked = 0.0
        await wait_until(lambda: guard.snapshot()["leaving"] == 2)
        await anyio.sleep(0.6)
        assert guard.snapshot()["leaving"] == 2
        done.set()
        await wait_until(lambda: len(guard.sessions) == 35)
    assert not events_of(SheddingFutile, seen)


@pytest.mark.anyio
async def test_memory_gate_collects_garbage_once_a_round_was_poor(monkeypatch):
    """Also after a good one: it was good because of that."""
    sensor, seen, collected = FakeMemory(returns=0.0), [], []

    def collect():
        collected.append(len(guard.sessions))
        sensor.returns = 1.0

    monkeypatch.setattr(give_back, "collect_garbage", collect)
    sensor.leaked = -0.3
    guard = pressed(sensor, seen)
    async with ConnectedClients(guard) as stay:
        await stay.come(40)
        sensor.leaked = 0.05
        await wait_until(lambda: len(guard.sessions) <= 34)
        await anyio.sleep(0.4)
    assert collected == [37, 36, 35, 34][: len(collected)]
    assert len(collected) >= 2
    assert not events_of(SheddingFutile, seen)


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["never", "shadow"])
async def test_memory_gate_that_may_not_shed_sheds_nobody(how):
    sensor = FakeMemory()
    gate = Pressure(sensor, 1.0, 0.9, 1.1)
    settings = Settings(shed_order="never") if how == "never" else Settings()
    guard = Guard(settings, gate=Shadow(gate) if how == "shadow" else gate)
    sensor.guard = guard
    async with ConnectedClients(guard) as stay:
        sensor.leaked = -0.3
        await stay.come(40)
        sensor.leaked = 1.0
        await anyio.sleep(0.4)
        assert stay.codes() == [None] * 40


class Somebody:
    """As much of a session as an update needs."""

    loop = types.SimpleNamespace(call_soon=lambda _call: True)
    permits = None


def baseline_of(guard):
    [gate] = [gate for gate in guard.gate.gates if isinstance(gate, Pressure)]
    return gate.rounds.baseline


def test_baseline_is_measured_at_the_start_and_kept_by_updates():
    pytest.importorskip("psutil")
    guard = Guard(Settings(max_memory="1GiB"))
    before = baseline_of(guard)
    assert before > 0
    guard.sessions[Somebody()] = None
    guard.update(max_memory="2GiB")
    assert baseline_of(guard) == pytest.approx(before / 2)
    guard.update(shed_rate=5)
    assert baseline_of(guard) == pytest.approx(before / 2)
    guard.update(max_memory=0.9)  # of something else
    assert baseline_of(guard) is None


def test_baseline_is_unknown_where_sessions_were_there_first():
    pytest.importorskip("psutil")
    guard = Guard(Settings())
    guard.sessions[Somebody()] = None
    guard.update(max_memory="2GiB")
    assert baseline_of(guard) is None


def test_baseline_leaves_no_value_that_would_refuse_for_ever():
    """Nobody samples before the first session, where there is no lifespan."""
    pytest.importorskip("psutil")
    guard = Guard(Settings(max_memory="1MiB"))
    [gate] = [gate for gate in guard.gate.gates if isinstance(gate, Pressure)]
    assert gate.usage is None


def test_baseline_that_cannot_be_read_is_unknown(tmp_path):
    guard = Guard(Settings(), gate=Pressure(Memory(root=tmp_path), 1.0, 0.9, 1.1))
    assert isinstance(guard, Guard)
    with pytest.raises(SettingsError):
        Guard(Settings(max_memory="none of that"))


@pytest.mark.anyio
async def test_memory_gate_with_a_failing_sensor_is_reported():
    """A gate whose sensor fails is reported, and the rest goes on."""

    class Broken(Memory):
        def sample(self):
            raise ArithmeticError

        value = sample

    seen = []
    guard = Guard(
        Settings(max_sessions=10, shed_rate=100), gate=Pressure(Broken(1), 1.0, 0.9, 1.1), observers=[seen.append]
    )
    async with ConnectedClients(guard) as stay:
        await stay.come(3)
        guard.update(max_sessions=1)
        await wait_until(lambda: len(guard.sessions) == 1)
    assert [event.callback for event in events_of(CallbackFailed, seen)] == ["memory.sample"]


# Giving back


@pytest.fixture
def collections(monkeypatch):
    """The full collections that were made."""
    made = []
    monkeypatch.setattr(give_back, "_seconds_a_block", 200e-9)
    monkeypatch.setattr(gc, "collect", lambda: made.append(1))
    return made


@pytest.mark.parametrize(("blocks", "count"), [(1000, 1), (499_999, 1), (500_001, 0), (10**9, 0)])
def test_collection_happens_only_where_it_is_quick(monkeypatch, collections, blocks, count):
    monkeypatch.setattr(sys, "getallocatedblocks", lambda: blocks)
    give_back.collect_garbage()
    assert len(collections) == count


def test_collection_that_was_slow_is_not_repeated(monkeypatch, collections):
    clock = iter([0.0, 0.2])
    monkeypatch.setattr(give_back.time, "thread_time", lambda: next(clock))
    monkeypatch.setattr(sys, "getallocatedblocks", lambda: 400_000)
    for _ in range(3):
        give_back.collect_garbage()
    assert len(collections) == 1


def test_collection_respects_a_collector_that_is_off(monkeypatch, collections):
    monkeypatch.setattr(gc, "isenabled", lambda: False)
    give_back.collect_garbage()
    assert not collections


def test_collection_without_a_count_of_blocks_does_not_happen(monkeypatch, collections):
    monkeypatch.delattr(sys, "getallocatedblocks")
    give_back.collect_garbage()
    assert not collections


@pytest.fixture
def real_trim(monkeypatch):
    monkeypatch.undo()
    return give_back.trim


def test_trim_runs_once_at_a_time_in_a_thread(real_trim, monkeypatch):
    threads, go_on = [], threading.Event()

    def malloc_trim(_pad):
        threads.append(threading.current_thread())
        go_on.wait(10)

    monkeypatch.setattr(give_back, "_malloc_trim", lambda: malloc_trim)
    real_trim()
    real_trim()
    assert give_back.is_trimming()
    go_on.set()
    give_back._trim.join()
    assert not give_back.is_trimming()
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


@pytest.mark.parametrize("libc", ["musl", "jemalloc", "free-threaded", "no malloc_trim", "nothing"])
def test_trim_is_left_out_where_malloc_is_another(real_trim, monkeypatch, libc):
    monkeypatch.setattr(give_back.os, "confstr", lambda _name: "glibc 2.36")
    names = {"malloc_trim": print}
    if libc == "musl":
        monkeypatch.setattr(give_back.os, "confstr", lambda _name: None)
    elif libc == "jemalloc":
        names["mallctl"] = print
    elif libc == "free-threaded":
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    elif libc == "no malloc_trim":
        names.clear()
    else:
        monkeypatch.delattr(give_back.os, "confstr")
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: types.SimpleNamespace(**names))
    assert give_back._malloc_trim() is None


# Cycles


class Connection:
    """An object as that of a server, with a parser that holds it."""

    def __init__(self, closed=True, fileno=-1):
        socket = types.SimpleNamespace(fileno=lambda: fileno)
        self.transport = types.SimpleNamespace(
            is_closing=lambda: closed, get_extra_info=lambda name: {"socket": socket}[name]
        )
        self.protocol = Protocol()

    async def send(self, message):
        pass

    async def receive(self):
        pass


class Protocol:
    def __init__(self):
        self.parser = self.parse()
        next(self.parser)

    def parse(self):
        while True:
            yield


@pytest.mark.parametrize(("is_closing", "fileno", "closed"), [(True, -1, True), (True, 7, False), (False, 7, False)])
def test_cycles_of_a_closed_connection_are_broken(is_closing, fileno, closed):
    """What is only closing may get data still: a parser that is closed raises StopIteration in the server then."""
    connection = Connection(is_closing, fileno)
    session = Guard(Settings()).session({"type": "websocket"}, connection.receive, connection.send)
    break_cycles(session)
    assert (connection.protocol.parser.gi_frame is None) is closed


def test_cycles_elsewhere_are_left_alone():
    connection = Connection()
    other = Connection()
    connection.protocol.parser, kept = other.protocol.parser, connection.protocol.parser
    connection.running = "text"
    session = Guard(Settings()).session({"type": "websocket"}, connection.receive, print)
    break_cycles(session)
    assert connection.protocol.parser.gi_frame is not None
    assert kept.gi_frame is not None
    session = Guard(Settings()).session({"type": "websocket"}, print, len)
    break_cycles(session)
