"""Metrics as Prometheus scrapes them, of one process and of several."""

import os
import signal
from collections import Counter

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.peers import Raw, wait_until
from tests.support.servers import serve


def scrape(server):
    """The values of a scrape: by name, those of the labels given, summed up over the others."""
    url = f"{server.url.replace('ws', 'http', 1)}/metrics/"
    text = httpx.get(url, trust_env=False, verify=False, timeout=20).raise_for_status().text

    def value(name, **labels):
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"closecodes_{name}" and sample.labels.items() >= labels.items()
        )

    return value


class Visitor(Raw):
    def __init__(self, server):
        super().__init__(server, "/rooms/5?token=x")
        assert self.answer() == 101
        self.process = int(self.frame()[1])

    def crash(self):
        self.send(1, b"crash")
        assert self.close_frame().code == 1011


def test_one_process(tmp_path, holding):
    env = {"CLOSECODES_MAX_SESSIONS": "1000"}
    with serve("uvicorn-sansio", "tests.live.servers.metered:app", tmp_path, env=env, forked=True) as server:
        visitors = [holding.enter_context(Visitor(server)) for _ in range(3)]
        value = scrape(server)
        assert value("sessions_active", route="/rooms/{room}") == value("sessions_active") == 3
        assert value("gate_usage", gate="max_sessions") == 3
        assert value("gate_limit", gate="max_sessions") == 1000
        for visitor in visitors:
            visitor.vanish()
        assert wait_until(lambda: scrape(server)("sessions_active") == 0)
        assert scrape(server)("gate_usage") == 0


def test_two_workers_and_one_that_is_killed(tmp_path, holding):
    directory = tmp_path / "metrics"
    directory.mkdir()
    env = {"PROMETHEUS_MULTIPROC_DIR": str(directory), "CLOSECODES_MAX_SESSIONS": "1000"}
    with serve("uvicorn-sansio", "tests.live.servers.metered:app", tmp_path, "--workers", "2", env=env) as server:
        assert wait_until(lambda: server.log().count("Application startup complete") == 2, within=30)
        visitors = []
        for _ in range(500):  # the kernel decides who gets which
            visitors.append(holding.enter_context(Visitor(server)))
            at = Counter(visitor.process for visitor in visitors)
            if len(at) == 2 and min(at.values()) >= 3:
                break
        [(busy, most), (_, fewest)] = at.most_common()
        total = most + fewest
        value = scrape(server)
        assert value("sessions_active", route="/rooms/{room}") == value("sessions_active") == total
        assert value("sessions_started_total") == value("admission_seconds_count", result="admitted") == total
        assert value("gate_limit", gate="max_sessions") == 1000
        assert wait_until(lambda: scrape(server)("gate_usage", gate="max_sessions") == most)
        for process in at:  # one of each
            next(visitor for visitor in visitors if visitor.process == process).crash()
        assert wait_until(lambda: scrape(server)("sessions_active") == total - 2)
        value = scrape(server)
        assert value("errors_total", route="/rooms/{room}", error_type="ZeroDivisionError", phase="open") == 2
        assert value("sessions_closed_total", code="1011") == value("sessions_closed_total") == 2
        assert value("draining") == 0

        os.kill(busy, signal.SIGKILL)
        assert wait_until(lambda: scrape_or_nothing(server) == fewest - 1, within=30), server.log()
        assert scrape(server)("sessions_started_total") == total
        for visitor in visitors:
            if visitor.process != busy:
                visitor.vanish()
        assert wait_until(lambda: scrape(server)("sessions_active") == 0)
        assert wait_until(lambda: scrape(server)("gate_usage", gate="max_sessions") == 0)


def scrape_or_nothing(server):
    try:
        return scrape(server)("sessions_active")
    except httpx.HTTPError:  # it went to the one that was killed
        return None
