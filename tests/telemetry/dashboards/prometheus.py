"""The tool that knows what Prometheus takes, and the series that there are."""

import subprocess

from asgi_closecodes.telemetry.metrics import METRICS
from tests.support.programs import program

SERIES = {}
"""Every series that there is, with its labels."""
for metric in METRICS:
    if metric.kind == "histogram":
        SERIES |= {f"{metric.name}_{part}": {*metric.labels} for part in ("sum", "count")}
        SERIES[f"{metric.name}_bucket"] = {*metric.labels, "le"}
    else:
        SERIES[metric.name] = {*metric.labels}


def promtool(*arguments, cwd):
    done = subprocess.run([program("promtool", "prometheus"), *arguments], cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr
