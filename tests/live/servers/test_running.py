"""What happens to a server over time: it stalls, it is stormed, it is stopped."""

import asyncio
import contextlib
import itertools
import os
import random
import re
import signal
import threading
import time

import httpx
import psutil
import websockets
import websockets.exceptions

from asgi_closecodes.guard.sigterm import SAME_SIGNAL_S
from tests.support.peers import Raw, connect, wait_until
from tests.support.servers import serve

from .at_once import cases_at_once

APP = "tests.live.servers.frameworks:starlette"


@cases_at_once(
    ("setup", "options"),
    [("uvicorn-sansio", []), ("uvicorn-sansio", ["--lifespan", "off"]), ("hypercorn-trio", []), ("granian", [])],
)
def test_first_handshake_after_a_stall_alone_is_refused(setup, options, tmp_path, holding):
    with serve(setup, APP, tmp_path, *options, env={"CLOSECODES_MAX_LOOP_LAG": "0.5"}, forked=True) as running:
        if options:  # without a lifespan there is background work only while there are sessions
            assert holding.enter_context(Raw(running, "/echo/a")).answer() == 101
            time.sleep(0.3)
        assert wait_until(lambda: connect(running, "/echo/a", say="x", patience=0.2).open), "others start meanwhile"
        url = running.url.replace("ws", "http", 1)
        stall = threading.Thread(
            target=httpx.get,
            args=[f"{url}/stall?seconds=2"],
            kwargs={"trust_env": False, "verify": False, "timeout": 20},
        )
        stall.start()
        time.sleep(0.3)
        seen = connect(running, "/echo/a")
        assert seen.code == 1013
        assert seen.reason.endswith("cause=lag")
        stall.join()
        start = time.monotonic()
        assert wait_until(lambda: connect(running, "/echo/a", say="x", patience=0.2).open, within=20)
        assert time.monotonic() - start > 1  # it does not flap
        [*_, record] = running.wait_for_records(1, event__name="closecodes.session.refused")
        assert record["closecodes.gate.name"] == "max_loop_lag"
        assert record["closecodes.gate.limit"] == 0.5
        assert record["closecodes.gate.usage"] > 0.5


@cases_at_once(("setup", "workers"), [*itertools.product(["uvicorn-sansio", "uvicorn-wsproto"], [1, 2])])
def test_stop_is_a_drain_in_which_every_client_gets_1012(setup, workers, tmp_path, holding):
    env = {"CLOSECODES_DRAIN_ON_SIGTERM": "true", "CLOSECODES_DRAIN_WINDOW": "2"}
    options = ("--workers", "2") if workers == 2 else ()
    with serve(setup, APP, tmp_path, *options, env=env) as running:
        peers = [holding.enter_context(Raw(running, "/echo/a")) for _ in range(10)]
        assert [peer.answer() for peer in peers] == [101] * 10
        start = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        seen = {}

        def wait(peer):
            close = peer.close_frame()
            seen[peer] = close, time.monotonic() - start
            with contextlib.suppress(ConnectionError):  # a server that stops may hang up before it is answered
                peer.send(8, close.code.to_bytes(2))

        threads = [threading.Thread(target=wait, args=[peer]) for peer in peers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [str(close) for close, _ in seen.values()] == ["1012 service restart; retry_after=1.0; cause=drain"] * 10
        times = sorted(when for _, when in seen.values())
        assert times[-1] - times[0] > 0.5  # not all at once
        assert times[-1] < 8
        running.process.wait(10)
        drained = running.records(event__name="closecodes.drain.finished")  # a worker may not have been up yet
        assert sum(record["closecodes.drain.sessions"] for record in drained) == 10


@cases_at_once(["workers"], [(1,), (2,)])
def test_unit_whose_every_process_is_signalled_drains(workers, tmp_path, holding):
    """systemd signals all processes of a unit, uvicorn's parent then its workers, and somebody all of them again."""
    env = {"CLOSECODES_DRAIN_ON_SIGTERM": "true", "CLOSECODES_DRAIN_WINDOW": "4"}
    options = ("--workers", "2") if workers == 2 else ()
    with serve("uvicorn-sansio", APP, tmp_path, *options, env=env) as running:
        peers = [holding.enter_context(Raw(running, "/echo/a")) for _ in range(20)]
        assert [peer.answer() for peer in peers] == [101] * 20
        os.killpg(running.process.pid, signal.SIGTERM)
        assert running.wait_for_records(1, event__name="closecodes.drain.started")
        for process in psutil.Process(running.process.pid).children() or [running.process]:
            process.send_signal(signal.SIGTERM)
        closes = []
        for peer in peers:
            closes.append(str(peer.close_frame()))
            peer.send(8, (1012).to_bytes(2))
        assert closes == ["1012 service restart; retry_after=1.0; cause=drain"] * 20
        running.process.wait(20)
        drained = running.records(event__name="closecodes.drain.finished")
        assert sum(record["closecodes.drain.sessions"] for record in drained) == 20


@cases_at_once(("number", "later"), [(signal.SIGTERM, SAME_SIGNAL_S), (signal.SIGINT, 0)])
def test_second_signal_stops_at_once(tmp_path, number, later):
    env = {"CLOSECODES_DRAIN_ON_SIGTERM": "true", "CLOSECODES_DRAIN_WINDOW": "60"}
    with serve("uvicorn-sansio", APP, tmp_path, env=env) as running:  # noqa: SIM117 - two conditions
        with Raw(running, "/echo/a") as first, Raw(running, "/echo/a") as second:
            assert first.answer() == second.answer() == 101
            running.process.send_signal(signal.SIGTERM)
            running.wait_for_records(1, event__name="closecodes.drain.started")
            time.sleep(later)
            running.process.send_signal(number)
            assert {first.close_frame().code, second.close_frame().code} == {1012}
            running.process.wait(15)


@cases_at_once(["setup"], [("hypercorn-asyncio",), ("hypercorn-trio",), ("granian",)])
def test_sigterm_drain_unavailable_warns_with_the_remedy(setup, tmp_path):
    """Where the signal cannot be taken over, a warning says what to do instead."""
    with serve(setup, APP, tmp_path, env={"CLOSECODES_DRAIN_ON_SIGTERM": "true"}) as running:
        [record] = running.wait_for_records(1, event__name="closecodes.drain.unavailable")
        assert record["level"] == "warning"
        assert "guard.drain()" in record["message"]


CLIENTS = 300


def test_storm_of_clients_that_follow_their_hints_is_in_soon(tmp_path):
    """Fifty come in at once, and fifty a second after that."""

    async def client(url, start):
        waited = 0.0
        for attempt in range(20):
            try:
                websocket = await websockets.connect(f"{url}/echo", open_timeout=60, proxy=None)
                await websocket.send("in?")
                assert await websocket.recv() == "in?"
                return attempt + 1, time.monotonic() - start, waited, websocket
            except websockets.exceptions.ConnectionClosed as closed:
                assert closed.rcvd.code == 1013
                reason = closed.rcvd.reason
            except websockets.exceptions.InvalidStatus as refused:  # beyond 200 refusals a second
                assert refused.response.status_code == 503
                reason = refused.response.body.decode()
            hint = float(re.fullmatch(r"try again later; retry_after=([0-9.]+); cause=rate", reason)[1])
            wait = max(hint, random.uniform(0, min(60, 2**attempt)))
            waited += wait
            await asyncio.sleep(wait)
        raise AssertionError("never came in")

    async def storm(url):
        outcomes = await asyncio.gather(*(client(url, time.monotonic()) for _ in range(CLIENTS)))
        for *_, websocket in outcomes:
            websocket.transport.abort()
        return outcomes

    with serve("uvicorn-sansio", "tests.live.servers.storm:app", tmp_path, forked=True) as running:
        outcomes = asyncio.run(storm(running.url))
    attempts, times, waits, _ = zip(*outcomes, strict=True)
    floor = (CLIENTS - 50) / 50
    assert sum(attempts) / CLIENTS <= 3
    assert floor <= max(times) + 0.2
    # Of what they were told to wait, and of all: a busy machine makes single clients miss their turns.
    assert sum(waits) / CLIENTS <= floor, "half of the last one's turn, where nobody misses any"


def test_tasks_of_granians_own_get_their_codes(tmp_path):
    """They are not asyncio's: they cannot be cancelled, and know no event loop."""
    with serve("granian", "tests.live.servers.wrapped:wrapped", tmp_path, "--task-impl", "rust") as running:
        with Raw(running, "/raise-after-accept") as peer:
            assert peer.answer() == 101
            assert peer.close_frame().code == 1011
        with Raw(running, "/return-after-accept") as peer:
            assert peer.answer() == 101
            assert peer.close_frame().code == 1000
