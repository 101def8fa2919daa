"""Drains at SIGTERM where something else than one process of uvicorn with a lifespan gets the signal."""

import contextlib
import os
import signal
import threading

from tests.support.peers import Raw, connect, wait_until
from tests.support.programs import module
from tests.support.servers import serve

from .at_once import cases_at_once

APP = "tests.live.servers.frameworks:starlette"
UNLIVED = "tests.live.servers.unlived"
GUNICORN = "gunicorn {app} --bind {hypercorn_bind} --worker-class uvicorn_worker.UvicornWorker"
DRAINED = "1012 service restart; retry_after=1.0; cause=drain"


def draining(window):
    return {"CLOSECODES_DRAIN_ON_SIGTERM": "true", "CLOSECODES_DRAIN_WINDOW": str(window)}


def served_by_gunicorn(tmp_path, *options, env):
    module("gunicorn"), module("uvicorn_worker", "uvicorn-worker")
    return serve(GUNICORN, APP, tmp_path, *options, env={"HOME": str(tmp_path), **env})


def opened(running, holding, *paths):
    peers = [holding.enter_context(Raw(running, path)) for path in paths]
    assert [peer.answer() for peer in peers] == [101] * len(peers)
    return peers


def closes(peers):
    """The close of each, which it answers at once."""
    seen = {}

    def wait(peer):
        close = peer.close_frame()
        seen[peer] = str(close)
        with contextlib.suppress(ConnectionError):  # a server that stops may hang up before it is answered
            peer.send(8, close.code.to_bytes(2))

    threads = [threading.Thread(target=wait, args=[peer]) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [seen.get(peer) for peer in peers]


@cases_at_once(("app", "paths", "guards"), [("routes", ["/one", "/two"], 2), ("channels", ["/echo", "/echo"], 1)])
def test_drain_without_a_lifespan_is_armed_by_a_session(app, paths, guards, tmp_path, holding):
    """Guards of several routes drain at the same time, not one after the other."""
    options = ["--lifespan", "off"] if app == "channels" else []
    with serve("uvicorn-sansio", f"{UNLIVED}:{app}", tmp_path, *options, env=draining(1)) as running:
        peers = opened(running, holding, *paths * 3)
        running.process.send_signal(signal.SIGTERM)
        assert closes(peers) == [DRAINED] * 6
        running.process.wait(15)
        events = [record["event.name"] for record in running.records() if "drain" in record["event.name"]]
        assert events == ["closecodes.drain.started"] * guards + ["closecodes.drain.finished"] * guards


def test_uvicorn_stops_beside_a_handler_that_goes_on(tmp_path):
    """Its client has left before the drain. uvicorn would wait for it, and the application's lifespan would not end."""
    with serve("uvicorn-sansio", APP, tmp_path, env={**draining(0), "CLOSECODES_SHED_GRACE": "0.1"}) as running:
        with Raw(running, "/go_on/a") as peer:
            assert peer.answer() == 101
        assert wait_until(lambda: "alone" in running.log())
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(15)
        assert "Application shutdown complete" in running.log()


def test_gunicorn_worker_drains_at_a_stop(tmp_path, holding):
    with served_by_gunicorn(tmp_path, env=draining(1)) as running:
        peers = opened(running, holding, *["/echo/a"] * 6)
        os.killpg(running.process.pid, signal.SIGTERM)  # as systemd does, and the arbiter signals its worker once more
        assert closes(peers) == [DRAINED] * 6
        running.process.wait(15)
        assert not running.records(event__name="closecodes.drain.too_long")


def test_gunicorn_reload_drains_the_worker_it_replaces(tmp_path, holding):
    """Older arbiters signal a worker that they replace every second. A stop would not wait for such a window."""
    with served_by_gunicorn(tmp_path, "--graceful-timeout", "3", env=draining(3)) as running:
        [record] = running.wait_for_records(1, event__name="closecodes.drain.too_long")
        assert record["level"] == "warning"
        assert record["message"].startswith("drain_window=3 is too long: gunicorn kills its workers 3 s after SIGTERM")
        peers = opened(running, holding, *["/echo/a"] * 8)
        running.process.send_signal(signal.SIGHUP)
        assert closes(peers) == [DRAINED] * 8
        # The old worker may take one more connection, and refuse it with 1012.
        assert wait_until(lambda: connect(running, "/echo/a", say="x", patience=0.5).open)


def test_uvicorn_reload_drains_the_old_process(tmp_path, holding):
    (watched := tmp_path / "watched").mkdir()
    (source := watched / "source.py").write_text("")
    os.utime(source, (0, 0))
    options = ["--reload", "--reload-dir", str(watched), "--reload-delay", "0.1"]
    with serve("uvicorn-sansio", APP, tmp_path, *options, env=draining(1)) as running:
        peers = opened(running, holding, *["/echo/a"] * 4)
        os.utime(source)
        assert closes(peers) == [DRAINED] * 4
        assert wait_until(lambda: connect(running, "/echo/a", say="x", patience=0.5).open), "by the new process"
        peers = opened(running, holding, *["/echo/a"] * 4)
        running.process.send_signal(signal.SIGTERM)
        assert closes(peers) == [DRAINED] * 4
        running.process.wait(15)


def test_uvicorn_sighup_drains_worker_after_worker(tmp_path, holding):
    with serve("uvicorn-sansio", APP, tmp_path, "--workers", "2", env=draining(1)) as running:
        peers = opened(running, holding, *["/echo/a"] * 8)
        running.process.send_signal(signal.SIGHUP)
        assert closes(peers) == [DRAINED] * 8
        assert wait_until(lambda: connect(running, "/echo/a", say="x", patience=0.5).open)


def test_daphne_drains_once_there_was_a_session(tmp_path, holding):
    """It sends 4012 for 1012."""
    with serve("daphne", f"{UNLIVED}:channels", tmp_path, env=draining(1)) as running:
        peers = opened(running, holding, *["/echo"] * 4)
        running.process.send_signal(signal.SIGTERM)
        assert closes(peers) == ["4012"] * 4
        running.process.wait(15)
        assert running.records(event__name="closecodes.drain.finished")
