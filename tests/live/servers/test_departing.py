"""What a guard counts is what its server holds, whatever peers do when a session ends; and a stop is not delayed."""

import contextlib
import math
import signal
import threading
import time

import psutil
import pytest

from tests.support.peers import Raw, snapshot, tell, wait_until
from tests.support.servers import SETUPS, serve

from .at_once import at_once, on_each, serve_all

CLOSE_TIMEOUT = 2.0
"""Seconds after which this server's guards abort what they can."""

WAYS = {
    "shed": "stay",
    "drain": "stay",
    "crash": "crash",
    "return": "returns",
    "close": "close",
    "cancel": "be-cancelled",
}
MUTE = {**WAYS, "refuse": "stay"}
STALLED = {
    "shed": "flood-and-stay",
    "crash": "flood-and-crash",
    "return": "flood-and-return",
    "close": "flood-and-close",
}

SELF_CLOSING = {"daphne"}
"""Servers that hang up by themselves within two seconds of a close, and whose transport cannot be reached."""

MARGIN = 2
"""Connections by which counts that are read one after the other may differ."""


class Client(Raw):
    """A peer that answers the close, or does not, or resets the connection then; or reads nothing at all."""

    def __init__(self, server, path, kind):
        self._kind = kind
        super().__init__(server, path)
        self.port = self.socket.getsockname()[1]
        self.socket.settimeout(30)
        if kind != "stalled":
            threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        with contextlib.suppress(OSError):
            self.answer()
            seen = self.close_frame()
            if self._kind == "polite":
                self.send(8, seen.code.to_bytes(2))
                while self.socket.recv(65536):
                    pass
                self.socket.close()
            elif self._kind == "vanish":
                self.vanish()


def held(server, clients):
    """The connections of these clients that the server's processes hold."""
    ports = {client.port for client in clients}
    parent = psutil.Process(server.process.pid)
    found = set()
    for process in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            found |= {one.raddr.port for one in process.net_connections("tcp") if one.raddr}
    return len(ports & found)


def counted(server):
    """What all guards count together; those that leave are among the sessions."""
    snapshots = tell(server).values()
    return sum(one["open"] + one["leaving"] + one["leaving_refused"] for one in snapshots)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    env = {"CLOSE_TIMEOUT": str(CLOSE_TIMEOUT)}
    with serve_all("tests.live.servers.departing:app", tmp_path_factory.mktemp("departing"), env=env) as servers:
        yield servers


@pytest.fixture
def servers(started):
    on_each(started, clear)
    return started


def clear(server):
    assert wait_until(lambda: counted(server) == 0, within=30)


def clients(holding, server, paths, kind, number=2, guard="any"):
    """Clients of all ``paths``; those that are to be ended from outside are."""
    come = []
    for way, handler in paths.items():
        for _ in range(number):
            path = f"/{'full' if way == 'refuse' else guard}/{handler}"
            come.append(holding.enter_context(Client(server, path, kind)))
    return come


def end_all(server, *guards):
    """End those who stay: of each guard the first ones by a shed, the others by a drain."""
    time.sleep(0.4)  # the handlers have filled what there is to fill, or wait
    for guard in guards or ("any",):
        tell(server, guard, shed="2")
        tell(server, guard, drain="1")


def is_true(server, clients):
    """Whether both are the same; the count is read first, since it is what may lag behind."""
    before = counted(server)
    return abs(held(server, clients) - before) <= MARGIN


@at_once
def test_peers_that_behave_free_their_permits(server, holding):
    """What is held is what is counted, and both are soon nothing, without an abort or an abandoned session."""
    before = len(server.records(event__name="closecodes.session.abandoned"))
    these = clients(holding, server, MUTE, "polite") + clients(holding, server, MUTE, "vanish")
    end_all(server)
    assert wait_until(lambda: is_true(server, these))
    assert wait_until(lambda: counted(server) == 0 == held(server, these))
    assert len(server.records(event__name="closecodes.session.abandoned")) == before


@at_once
def test_peers_that_do_not_behave_count_while_held(server, setup, holding):
    """But for those that are cancelled, or held for longer than ``abandon_after``; and all are dropped in the end."""
    stalled = {**STALLED}
    if setup == "hypercorn-trio":
        stalled = {"shed": stalled["shed"]}  # a write never ends before that
    elif setup == "granian":
        del stalled["close"]  # nor does the handler's own close
    mute = {way: path for way, path in MUTE.items() if way != "cancel"}
    these = clients(holding, server, mute, "mute") + clients(holding, server, stalled, "stalled")
    these += clients(holding, server, {"crash": "crash", "return": "returns"}, "mute", guard="below")
    cancelled = clients(holding, server, {"cancel": "be-cancelled"}, "mute")
    abandoned = clients(holding, server, {"shed": "stay", "return": "returns"}, "mute", guard="brief")
    end_all(server, "brief", "any")
    wrong = []

    def is_over():
        before = counted(server)
        now = held(server, these)
        if before < now - MARGIN:
            wrong.append((before, now))
        return now == 0 == counted(server) == held(server, cancelled + abandoned)

    assert wait_until(is_over, within=30)
    if setup not in SELF_CLOSING:
        assert len(wrong) <= 1, wrong  # a connection that is aborted goes a turn later than its place
    if setup.startswith("uvicorn"):
        [first, *_] = server.wait_for_records(event__name="closecodes.session.abandoned")
        assert first["level"] == "warning"


@at_once(setups=[setup for setup in SETUPS if setup != "daphne"])
def test_peer_that_reads_slowly_gets_what_was_sent(server):
    """A handler that sends a large message and closes loses none of it, however long its peer takes.

    daphne sends no message of more than 1 MiB.
    """
    with Raw(server, "/any/long-farewell") as peer:
        peer.answer()
        until = time.monotonic() + 2 * CLOSE_TIMEOUT
        while time.monotonic() < until:
            peer._data += peer.socket.recv(1 << 16)
            time.sleep(0.02)
        peer.socket.settimeout(30)
        assert len(peer.frame()[1]) == 30_000_000
        assert peer.close_frame().code == 4000


@at_once
def test_one_client_holds_at_most_twice_its_limit(server, setup, holding):
    """It comes without a pause, and neither reads nor answers a close."""
    these, most = [], 0
    for number in range(30):
        kind, handler = ("mute", "stay") if number % 2 else ("stalled", "flood-and-stay")
        these += clients(holding, server, {"replace": handler}, kind, 1, guard="few")
        if number % 5 == 4:
            few = snapshot(server, "few")
            assert few["open"] + few["leaving"] <= 6
            most = max(most, held(server, these) - snapshot(server, "few")["leaving_refused"])
    if setup not in SELF_CLOSING:
        assert most <= 6 + 5 + MARGIN  # five that have come since the last look may wait for their refusal
    assert wait_until(lambda: snapshot(server, "few")["sheds"].get("replaced", 0) > 0)
    end_all(server, "few")
    assert wait_until(lambda: counted(server) == 0 == held(server, these), within=30)


def test_sigterm_is_as_fast_as_without_the_middleware(setup, tmp_path, holding):
    """20 sessions that have ended, whose peers read or answer nothing, keep no server from stopping."""
    peers = [("mute", "close")]
    if setup in {"hypercorn-asyncio", "granian", "daphne"}:  # elsewhere the bare one does not stop for those
        peers.append(("stalled", "flood-and-return"))
    servers = {}
    for app in ("bare", "app"):
        folder = tmp_path / app
        folder.mkdir()
        forked = not setup.startswith("hypercorn")  # whose parent passes the signal on
        running = serve(setup, f"tests.live.servers.departing:{app}", folder, forked=forked)
        servers[app] = holding.enter_context(running)
        for number in range(20):
            kind, handler = peers[number % len(peers)]
            holding.enter_context(Client(servers[app], f"/any/{handler}", kind))
    time.sleep(0.6)
    start = time.monotonic()
    for server in servers.values():
        server.process.send_signal(signal.SIGTERM)
    took = {}

    def have_stopped():
        for app, server in servers.items():
            if app not in took and server.process.poll() is not None:
                took[app] = time.monotonic() - start
        return "app" in took

    wait_until(have_stopped, within=6)
    assert took.get("app", math.inf) < took.get("bare", math.inf) + 2  # a bare hypercorn may wait for ever
