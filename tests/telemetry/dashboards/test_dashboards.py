"""The dashboard and the alerts are what Grafana and Prometheus take, and ask for metrics that there are."""

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from asgi_closecodes.telemetry.metrics import METRICS
from tests.support.peers import Raw, connect, wait_until
from tests.support.programs import program
from tests.support.servers import serve, stop

from .prometheus import SERIES, promtool

HERE = Path(__file__).parent
SHIPPED = files("asgi_closecodes.telemetry") / "dashboards"
DASHBOARD = json.loads((SHIPPED / "grafana.json").read_text())
ALERTS = yaml.safe_load((SHIPPED / "alerts.yml").read_text())
PANELS = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in DASHBOARD["panels"]}
RULES = {rule["alert"]: rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]}


def as_sent(expression, interval="5m"):
    """What Grafana makes of a query."""
    return expression.replace("$__rate_interval", interval).replace("$job", ".*").replace("$instance", ".*")


def test_there_are_five_alerts():
    assert len(RULES) == 5


@pytest.mark.parametrize("expression", [*RULES.values(), *(one for all_of in PANELS.values() for one in all_of)])
def test_query_asks_for_what_there_is(expression):
    names = set(re.findall(r"\bclosecodes_\w+", expression))
    assert names
    assert names <= set(SERIES)
    labels = set().union(*(SERIES[name] for name in names)) | {"job", "instance"}
    for selector in re.findall(r"\{(.*?)\}", expression):
        assert set(re.findall(r'(\w+)\s*[=!]=?~?"', selector)) <= labels
    for grouping in re.findall(r"by \((.*?)\)", expression):
        assert set(re.split(r",\s*", grouping)) <= labels


def test_dashboard_or_an_alert_shows_every_metric():
    asked = " ".join([*RULES.values(), *(expression for expressions in PANELS.values() for expression in expressions)])
    assert {metric.name for metric in METRICS if metric.name not in asked} == set()


def test_grafana_s_own_model_knows_all_of_the_dashboard():
    register_default_plugins()
    known = json.loads(json.dumps(Dashboard.from_json(DASHBOARD), cls=JSONEncoder))

    def lost(written, read, path=""):
        if isinstance(written, dict) and isinstance(read, dict):
            for key, value in written.items():
                yield from lost(value, read.get(key), f"{path}/{key}")
        elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
            for number, (one, other) in enumerate(zip(written, read, strict=True)):
                yield from lost(one, other, f"{path}/{number}")
        elif written != read:
            yield path, written, read

    assert list(lost(DASHBOARD, known)) == []


def test_panels_do_not_overlap():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        taken |= cells


def test_prometheus_takes_every_query(tmp_path):
    queries = [as_sent(expression) for expressions in PANELS.values() for expression in expressions]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "dashboard.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    shutil.copy(SHIPPED / "alerts.yml", tmp_path)
    code, output = promtool("check", "rules", "dashboard.yml", "alerts.yml", cwd=tmp_path)
    assert code == 0, output
    assert f"{len(queries)} rules found" in output
    assert "5 rules found" in output


def test_each_alert_fires_when_it_should_and_not_just_below(tmp_path):
    shutil.copy(SHIPPED / "alerts.yml", tmp_path)
    shutil.copy(HERE / "alerts_test.yml", tmp_path)
    code, output = promtool("test", "rules", "alerts_test.yml", cwd=tmp_path)
    assert code == 0, output
    tests = yaml.safe_load((HERE / "alerts_test.yml").read_text())["tests"]
    assert {test["alertname"] for one in tests for test in one["alert_rule_test"]} == set(RULES)


# Here every close is taken, and not always are there enough records to suppress some.
QUIET = {
    *("Closes that the server did not take", "Suppressed log records", "Stalls of the event loop"),
    *("Cluster limits", "The store of cluster limits"),  # this application has none
}


def test_real_prometheus_fills_every_panel(tmp_path):
    with serve(
        "uvicorn-sansio",
        "tests.live.servers.metered:app",
        tmp_path,
        env={"CLOSECODES_LOG_BURST": "none", "CLOSECODES_MAX_SESSIONS": "2"},
        forked=True,
    ) as app:
        host, port = app.address
        (tmp_path / "prometheus.yml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
                    "rule_files": [str(SHIPPED / "alerts.yml")],
                    "scrape_configs": [{"job_name": "app", "static_configs": [{"targets": [f"{host}:{port}"]}]}],
                }
            )
        )
        with Prometheus(tmp_path) as prometheus, Raw(app, "/rooms/stays") as stays:
            assert stays.answer() == 101
            assert wait_until(lambda: prometheus.ask("closecodes_sessions_active > 0"), within=30), prometheus.log()

            def filled():
                with Raw(app, "/rooms/5") as crashes:
                    crashes.answer()
                    connect(app, "/rooms/full")
                    crashes.send(1, b"crash")
                    crashes.close_frame()
                return all(
                    prometheus.ask(as_sent(expression, "10s"))
                    for title, expressions in PANELS.items()
                    if title not in QUIET
                    for expression in expressions
                )

            filled_up = wait_until(filled, within=40)
            assert filled_up, {
                title: [prometheus.ask(as_sent(one, "10s")) for one in all_of] for title, all_of in PANELS.items()
            }
            assert prometheus.ask(RULES["WebSocketSessionsFail"])
            alerts = prometheus.get("rules")["groups"][0]["rules"]
            assert {alert["health"] for alert in alerts} == {"ok"}


class Prometheus:
    """The server itself."""

    def __init__(self, directory):
        self.directory = directory

    def __enter__(self):
        with (self.directory / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program("prometheus"),
                    "--config.file=prometheus.yml",
                    "--storage.tsdb.path=data",
                    "--web.listen-address=127.0.0.1:0",
                ],
                cwd=self.directory,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        found = wait_until(lambda: re.search(r"Listening on\"? address=127\.0\.0\.1:(\d+)", self.log()), within=30)
        assert found, self.log()
        self.url = f"http://127.0.0.1:{found[1]}/api/v1"
        return self

    def __exit__(self, *error):
        stop(self.process)

    def log(self):
        return (self.directory / "prometheus.log").read_text()

    def get(self, path, **parameters):
        answer = httpx.get(f"{self.url}/{path}", params=parameters, trust_env=False, timeout=20).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def ask(self, query):
        return self.get("query", query=query)["result"]
