"""The recipes for autoscaling ask for what should be asked, whatever the pods are doing; by promtool."""

import math
import re
from importlib.resources import files

import pytest
import yaml

from .prometheus import SERIES, promtool

SHIPPED = files("asgi_closecodes.telemetry") / "dashboards"
KEDA = yaml.safe_load((SHIPPED / "keda.yml").read_text())
ADAPTER, HPA = yaml.safe_load_all((SHIPPED / "hpa.yml").read_text())
TRIGGERS = {trigger["name"]: trigger["metadata"] for trigger in KEDA["spec"]["triggers"]}
RULES = {rule["name"]["as"]: rule["metricsQuery"] for rule in ADAPTER["rules"]["external"]}


def pod(name, *, sessions, headroom, draining="0x20", limit="1000x20", job="chat"):
    labels = f'{{job="{job}", instance="{name}"'
    return [
        (f"closecodes_wanted_sessions{labels}}}", sessions),
        (f"closecodes_headroom{labels}}}", headroom),
        (f"closecodes_draining{labels}}}", draining),
        (f'closecodes_gate_limit{labels}, gate="max_sessions"}}', limit),
        (f'closecodes_gate_limit{labels}, gate="max_loop_lag"}}', "0.25x20"),
    ]


CASES = {
    "full": (
        [*pod("1", sessions="1000x20", headroom="0x20"), *pod("2", sessions="1000x20", headroom="0x20")],
        {"sessions": 2000, "use": 2},
        3,
    ),
    "full, and more wait": (
        [*pod("1", sessions="1600x20", headroom="0x20"), *pod("2", sessions="1600x20", headroom="0x20")],
        {"sessions": 3200, "use": 2},
        4,
    ),
    "beyond a limit that was lowered": (
        [*pod("1", sessions="1000x20", headroom="-9x20"), *pod("2", sessions="0x20", headroom="1x20")],
        {"sessions": 1000, "use": 2},
        3,
    ),
    "half full": (
        [*pod("1", sessions="500x20", headroom="0.5x20"), *pod("2", sessions="500x20", headroom="0.5x20")],
        {"sessions": 1000, "use": 1},
        2,
    ),
    "few sessions, and no time": (
        [*pod("1", sessions="100x20", headroom="0x20"), *pod("2", sessions="100x20", headroom="0x20")],
        {"sessions": 200, "use": 2},
        3,
    ),
    "draining": (
        [
            *pod("1", sessions="800x20", headroom="0.2x20"),
            *pod("2", sessions="800x20", headroom="0.2x20", draining="1x20"),
        ],
        {"sessions": 1600, "use": 0.8},
        2,
    ),
    "all are draining": (
        [*pod("1", sessions="800x20", headroom="0.2x20", draining="1x20")],
        {"sessions": 800, "use": 0},
        1,
    ),
    "restarted": (  # under another name: what the old one said is gone
        [
            *pod("1", sessions="800x20", headroom="0.2x20"),
            *pod("2", sessions="800x8 stale", headroom="0.2x8 stale", draining="0x8 stale", limit="1000x8 stale"),
            *pod("3", sessions="_x9 400x20", headroom="_x9 0.6x20", draining="_x9 0x20", limit="_x9 1000x20"),
        ],
        {"sessions": 1200, "use": 1.2},
        2,
    ),
    "a limit of 0": (
        [
            *pod("1", sessions="800x20", headroom="0.2x20"),
            *pod("2", sessions="0x20", headroom="0x20", limit="0x20"),
        ],
        {"sessions": 800, "use": 0.8},
        1,
    ),
    "all have a limit of 0": (
        [*pod("1", sessions="0x20", headroom="0x20", limit="0x20")],
        {"sessions": 0, "use": 0},
        0,
    ),
    "another service": (
        [
            *pod("1", sessions="400x20", headroom="0.6x20"),
            *pod("1", sessions="900x20", headroom="0.1x20", draining="1x20", limit="0x20", job="other"),
        ],
        {"sessions": 400, "use": 0.4},
        1,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_queries_say_what_is_wanted(case, tmp_path):
    series, wanted, _ = CASES[case]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": [
            {
                "expr": f"round({TRIGGERS[name]['query']}, 0.001)",
                "eval_time": "15m",
                "exp_samples": [{"labels": "{}", "value": value}],
            }
            for name, value in wanted.items()
        ],
    }
    (tmp_path / "scaling.yml").write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}))
    code, output = promtool("test", "rules", "scaling.yml", cwd=tmp_path)
    assert code == 0, output


@pytest.mark.parametrize("case", CASES)
def test_queries_make_as_many_pods_as_are_needed(case):
    """An autoscaler divides by the threshold, rounds up, and takes the largest."""
    _, wanted, pods = CASES[case]
    assert max(math.ceil(value / float(TRIGGERS[name]["threshold"])) for name, value in wanted.items()) == pods


def test_both_recipes_ask_for_the_same():
    assert [*RULES.values()] == [trigger["query"] for trigger in TRIGGERS.values()]
    spec, metrics = HPA["spec"], [metric["external"] for metric in HPA["spec"]["metrics"]]
    assert [metric["metric"]["name"] for metric in metrics] == [*RULES]
    targets = [metric["target"]["averageValue"] for metric in metrics]
    assert targets == ["800", "800m"]
    assert [trigger["threshold"] for trigger in TRIGGERS.values()] == ["800", "0.8"]
    behavior = KEDA["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert spec["behavior"] == behavior
    assert (spec["minReplicas"], spec["maxReplicas"]) == (
        KEDA["spec"]["minReplicaCount"],
        KEDA["spec"]["maxReplicaCount"],
    )


def test_each_query_asks_for_what_there_is():

    for query in RULES.values():
        assert set(re.findall(r"\bclosecodes_\w+", query)) <= set(SERIES)
