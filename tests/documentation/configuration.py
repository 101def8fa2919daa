"""Configuration on the pages, by its language: read by the programs that it is for, or by their schemas."""

import configparser
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

from tests.support import generated
from tests.support.ports import free_port
from tests.support.programs import program
from tests.support.proxies import NGINX

from .pages import Block
from .shell import broken_shell


def broken_json(block: Block, folder: Path) -> Iterator[str]:
    """Yield where JSON is none, or is a record of the log that the schema refuses."""
    try:
        value = json.loads(block.source)
    except json.JSONDecodeError as error:
        yield block.problem(error.lineno - 1, error.msg)
        return
    if isinstance(value, dict) and "event.name" in value:
        schema = json.loads(generated.SCHEMA.read_text(encoding="utf-8"))
        for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
            yield block.problem(_line_with(block, error.path), error.message)


def _line_with(block, path):
    """Return the line that has the last key of ``path``."""
    keys = [str(key) for key in path]
    lines = block.source.splitlines()
    return next((number for key in reversed(keys) for number, line in enumerate(lines) if key in line), 0)


def broken_toml(block: Block, folder: Path) -> Iterator[str]:
    """Yield where TOML is none."""
    try:
        tomllib.loads(block.source)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        yield block.problem(int(line[1]) - 1 if line else 0, str(error))


def broken_yaml(block: Block, folder: Path) -> Iterator[str]:
    """Yield what is wrong for Kubernetes, Prometheus or Docker Compose, one of which it is for."""
    try:
        documents = list(yaml.safe_load_all(block.source))
    except yaml.MarkedYAMLError as error:
        yield block.problem(error.problem_mark.line, error.problem)
        return
    for document in documents:
        keys = set(document) if isinstance(document, dict) else set()
        if keys & _KUBERNETES:
            yield from _broken_kubernetes(block, document)
        elif keys & {"groups", "scrape_configs", "rule_files"}:
            yield from _broken_prometheus(block, document, folder)
        elif "services" in keys:
            yield from _broken_compose(block, document)
        else:
            yield block.problem(0, f"nothing is known that reads {sorted(keys)}; see configuration.py")


_OF_DEPLOYMENT = {"replicas", "strategy", "template", "minReadySeconds"}
_OF_POD = {"containers", "terminationGracePeriodSeconds", "initContainers", "volumes"}
_OF_CONTAINER = {"lifecycle", "readinessProbe", "livenessProbe", "startupProbe", "env", "image", "command", "ports"}
_KUBERNETES = {"kind", "apiVersion", *_OF_DEPLOYMENT, *_OF_POD, *_OF_CONTAINER}


def _broken_kubernetes(block, document):
    """Complete a part of a Deployment, and ask the schema of Kubernetes."""
    if "kind" not in document:
        keys = set(document)
        if not keys & {*_OF_DEPLOYMENT, *_OF_POD}:
            document = {"containers": [document]}
        if not keys & _OF_DEPLOYMENT:
            document = {"template": {"spec": document}}
        for container in document["template"]["spec"].setdefault("containers", [{}]):
            container.setdefault("name", "app")
        document = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"selector": {}, **document}}
    try:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        yield block.problem(
            _line_with(block, [*error.path, *re.findall(r"\('(\w+)' was", error.message)]), error.message
        )
    except kubernetes_validate.SchemaNotFoundError as error:
        yield block.problem(0, error.message)


def _broken_prometheus(block, document, folder):
    what = "rules" if "groups" in document else "config"
    (folder / "prometheus.yml").write_text(block.source, encoding="utf-8")
    flags = ["--syntax-only"] if what == "config" else []
    yield from _said_by(block, [program("promtool", "prometheus"), "check", what, *flags, "prometheus.yml"], folder)


_COMPOSE = set(
    "build command depends_on deploy environment healthcheck image init ports restart stop_grace_period stop_signal ulimits volumes".split()
)


def _broken_compose(block, document):
    for name, service in document["services"].items():
        for key in set(service) - _COMPOSE:
            yield block.problem(_line_with(block, [key]), f"service {name} has an unknown key {key}")


def broken_ini(block: Block, folder: Path) -> Iterator[str]:
    """Yield what systemd says of a unit, or of a part of its section Service."""
    if not (has_sections := block.source.lstrip().startswith("[")):
        sections = ["Service"]
    else:
        parser = configparser.RawConfigParser(strict=False)
        parser.read_string(block.source)
        sections = parser.sections()
    if not {"Service", "Socket", "Timer"}.intersection(sections):
        yield block.problem(0, f"nothing is known that reads {sections}; see configuration.py")
        return
    added = "" if has_sections else "[Service]\n"
    complete = "" if re.search("^ExecStart=", block.source, re.MULTILINE) else "\n[Service]\nExecStart=/bin/true\n"
    kind = next(kind for kind in ("Service", "Socket", "Timer") if kind in sections).lower()
    (folder / f"page.{kind}").write_text(added + block.source + complete, encoding="utf-8")
    command = [program("systemd-analyze", "systemd"), "verify", "--man=no", "--recursive-errors=no", f"./page.{kind}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    for line, why in re.findall(rf"page\.{kind}:(?:(\d+):)? (.*)", done.stderr):
        if "is not executable: No such file" not in why:  # the user's program
            yield block.problem(int(line) - 1 - added.count("\n") if line else 0, why)
    for offset, line in enumerate(block.source.splitlines()):
        if started := re.match(r"Exec\w+=[-@:+!]*(.*)", line):
            words = Block(block.page, block.line + offset, "sh", started[1], block.headings)
            yield from broken_shell(words)


def broken_nginx(block: Block, folder: Path) -> Iterator[str]:
    """Yield what nginx says of a part of a server, or of whole ones."""
    is_server = re.search(r"^\s*(server|upstream|map)\b.*\{", block.source, re.MULTILINE)
    recipe = block.source if is_server else f"server {{ listen 127.0.0.1:{free_port()}; {block.source} }}"
    before = NGINX.format(directory=folder, recipe="\0").partition("\0")[0].count("\n")
    (folder / "nginx.conf").write_text(NGINX.format(directory=folder, recipe=recipe), encoding="utf-8")
    command = [program("nginx", "nginx-light"), "-t", "-q", "-p", str(folder), "-c", "nginx.conf"]
    yield from _said_by(block, command, folder, before)


def broken_haproxy(block: Block, folder: Path) -> Iterator[str]:
    """Yield what haproxy says of its configuration."""
    (folder / "haproxy.cfg").write_text(block.source, encoding="utf-8")
    yield from _said_by(block, [program("haproxy"), "-c", "-dW", "-f", "haproxy.cfg"], folder)


def _said_by(block, command, folder, before=0):
    """Run a program that checks a file; ``before`` lines of it are not the block's."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        line = re.search(r"\.(?:conf|cfg):(\d+)|\bline (\d+)", said)
        yield block.problem(int(line[1] or line[2]) - 1 - before if line else 0, said)
