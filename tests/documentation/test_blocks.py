"""Fenced blocks of the pages are what their language says; Python and scripts are in test_python.py and test_scripts.py."""

import pytest

from . import configuration
from .pages import Block, Page, pages
from .shell import broken_commands, broken_shell

CHECKS = {
    "haproxy": configuration.broken_haproxy,
    "ini": configuration.broken_ini,
    "json": configuration.broken_json,
    "nginx": configuration.broken_nginx,
    "sh": lambda block, folder: broken_shell(block),
    "text": lambda block, folder: [],  # what a program prints
    "toml": configuration.broken_toml,
    "yaml": configuration.broken_yaml,
}
ELSEWHERE = {"html", "js", "python"}
BLOCKS = [block for page in pages() for block in page.blocks if block.language not in ELSEWHERE]


def broken(block, folder):
    """Return what is wrong with a block."""
    check = CHECKS.get(block.language)
    if check is None:
        name = block.language or "none (what a program prints is text)"
        return [block.problem(-1, f"nothing is known that reads the language {name}")]
    return list(check(block, folder))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block_is_what_its_language_says(block, tmp_path):
    assert broken(block, tmp_path) == []


@pytest.mark.parametrize("page", pages(), ids=str)
def test_command_in_a_sentence_exists(page):
    assert list(broken_commands(page)) == []


GOOD = {
    "container": (
        "yaml",
        "lifecycle:\n  preStop:\n    exec:\n      command: [sleep, '5']",
    ),
    "deployment's part": (
        "yaml",
        "strategy: {rollingUpdate: {maxSurge: 1}}\ntemplate:\n  spec:\n    containers: [{name: app, env: [{name: A, value: b}]}]",
    ),
    "deployment": (
        "yaml",
        "apiVersion: apps/v1\nkind: Deployment\nspec:\n  selector: {}\n  template: {spec: {containers: [{name: app}]}}",
    ),
    "rules": ("yaml", "rule_files: [alerts.yml]\nscrape_configs: [{job_name: app}]"),
    "compose": ("yaml", "services:\n  app:\n    image: app\n    stop_grace_period: 60s"),
    "whole unit": ("ini", "[Unit]\nDescription=App\n\n[Service]\nExecStart=/srv/app/uvicorn app:app\nKillMode=mixed"),
    "whole server": (
        "nginx",
        "upstream app { server 127.0.0.1:8000; }\nserver { location / { proxy_pass http://app; } }",
    ),
    "substitution": ("sh", 'uvicorn app:app --log-config "$(python -m asgi_closecodes.logs json)" 2> log | tail -1'),
    "others' extras": ("sh", "pip install 'uvicorn[standard]' 'asgi-closecodes[cli,redis]>=0.1' dist/a.whl[cli]"),
    "text": ("text", "anything: ["),
    "toml": ("toml", "[tool.pytest.ini_options]\naddopts = []"),
}


@pytest.mark.parametrize(("language", "source"), GOOD.values(), ids=GOOD)
def test_good_block_passes(language, source, tmp_path):
    assert broken(Block.only(language, source), tmp_path) == []


BAD = {
    "no language": ("", "x", 3, "language none"),
    "unknown language": ("brainfuck", "x", 3, "language brainfuck"),
    "json": ("json", '{\n"a" 1}', 5, "Expecting ':' delimiter"),
    "log record": ("json", '{"event.name":\n"closecodes.nothing"}', 4, "is not valid under any"),
    "toml": ("toml", "a = 1\nb = ", 5, "Invalid value"),
    "yaml": ("yaml", "a: 1\nb: [", 6, "expected"),
    "yaml of nobody": ("yaml", "colour: red", 4, "nothing is known that reads ['colour']"),
    "kubernetes": ("yaml", "containers:\n- name: app\n  liveness: {}", 6, "'liveness' was unexpected"),
    "kubernetes's type": ("yaml", "terminationGracePeriodSeconds: 60s", 4, "'60s' is not of type"),
    "kubernetes's kind": ("yaml", "apiVersion: apps/v1\nkind: Deploy", 4, "Couldn't find schema"),
    "prometheus": ("yaml", "scrape_configs:\n- job: app", 5, "field job not found"),
    "compose": ("yaml", "services:\n  app:\n    grace: 60s", 6, "service app has an unknown key grace"),
    "systemd's key": ("ini", "KillMode=mixed\nTimeoutStop=60", 5, "Unknown key"),
    "systemd's value": ("ini", "[Service]\nExecStart=/bin/true\nKillMode=mixd", 6, "Failed to parse"),
    "systemd's command": (
        "ini",
        "ExecStart=/srv/.venv/bin/uvicorn app:app --worker 2",
        4,
        "uvicorn has no option --worker",
    ),
    "ini of nobody": ("ini", "[app]\na=1", 4, "nothing is known that reads ['app']"),
    "nginx": ("nginx", "location / {\n    proxy_passes http://127.0.0.1:8000;\n}", 5, "unknown directive"),
    "haproxy": ("haproxy", "frontend web\n    binds :80", 5, "unknown keyword 'binds'"),
    "sh": ("sh", "ls\nif true; fi", 5, "syntax error"),
    "command": ("sh", "ls\nasgi-closecodes log show", 5, "asgi-closecodes has no command log"),
    "subcommand": ("sh", "asgi-closecodes logs shows REF", 4, "asgi-closecodes logs has no command shows"),
    "option": (
        "sh",
        "A=1 asgi-closecodes \\\n  capacity ws://x --mesage x",
        4,
        "asgi-closecodes capacity has no option --mesage",
    ),
    "in a substitution": ("sh", 'echo "$(asgi-closecodes logs lnav)"', 4, "asgi-closecodes logs has no command lnav"),
    "module": ("sh", "python -m asgi_closecodes.log json", 4, "there is no module asgi_closecodes.log"),
    "module's option": ("sh", "python -m demo_app --server uvicorn --prot 1", 4, "demo_app has no option --prot"),
    "module without --help": ("sh", "python -m asgi_closecodes.logs --json", 4, "form must be json or yaml"),
    "package": ("sh", "python -m asgi_closecodes", 4, "asgi_closecodes has no __main__"),
    "application": ("sh", "uvicorn demo_app.chatter:app", 4, "there is no module demo_app.chatter"),
    "server": ("sh", "hypercorn app:app --worker 2", 4, "hypercorn has no option --worker"),
    "program": ("sh", "uvicron app:app", 4, "unknown program 'uvicron'"),
    "extra": ("sh", "pip install 'asgi-closecodes[prometeus]'", 4, "there is no extra prometeus"),
    "wheel's extra": ("sh", "pip install --quiet 'dist/a.whl[cli,sentry]'", 4, "there is no extra sentry"),
    "code": ("sh", "python -c 'print('", 4, "was never closed"),
}


@pytest.mark.parametrize(("language", "source", "line", "why"), BAD.values(), ids=BAD)
def test_bad_block_is_named_with_its_line(language, source, line, why, tmp_path):
    problems = broken(Block.only(language, source), tmp_path)
    assert [problem for problem in problems if why in problem and problem.startswith(f"README.md:{line}: ")], problems
    assert len(problems) == 1 or language == "json"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("`asgi-closecodes logs show REF` and\n`asgi-closecodes logs shw`", "README.md:2: asgi-closecodes logs shw: "),
        ("`uvicorn app:app --wokers`", "README.md:1: uvicorn app:app --wokers: "),
        ("`python -m tests.benchmark --only x`", "README.md:1: python -m tests.benchmark --only x: "),
    ],
)
def test_bad_command_in_a_sentence_is_named_with_its_line(text, problem):
    [seen] = broken_commands(Page.parse("README.md", text))
    assert seen.startswith(problem)
