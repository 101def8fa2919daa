"""The TypeScript declarations declare what the JavaScript module has, as far as names go."""

import re
from importlib.resources import files

FOLDER = files("asgi_closecodes.client")
MODULE = (FOLDER / "reconnecting-websocket.js").read_text(encoding="utf-8")
DECLARED = (FOLDER / "reconnecting-websocket.d.ts").read_text(encoding="utf-8")


def block(text, head):
    """Return the lines of a class or an interface that are indented by two spaces."""
    [body] = re.findall(rf"^export {head}\b[^\n]*{{\n(.*?)^}}", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"^  (?! )(.*)", body, re.MULTILINE)


def names(lines, pattern):
    return {found[1] for line in lines if (found := re.match(pattern, line))}


def defaults(kind):
    """Return the names of the options of a class of the module."""
    [found] = re.findall(rf"class {kind}\b.*?const defaults = {{(.*?)}};", MODULE, re.DOTALL)
    return set(re.findall(r"(\w+): ", found))


def test_declared_classes_are_those_of_the_module():
    assert set(re.findall(r"^export class (\w+)", DECLARED, re.MULTILINE)) == set(
        re.findall(r"^export class (\w+)", MODULE, re.MULTILINE)
    )


def test_declared_options_are_those_of_the_module():
    for kind in ("Backoff", "ReconnectingWebSocket"):
        assert names(block(DECLARED, f"interface {kind}Options"), r"(\w+)\?:") == defaults(kind) != set()


def test_declared_methods_are_those_of_the_module():
    for kind in ("Backoff", "ReconnectingWebSocket"):
        own = names(block(MODULE, f"class {kind}"), r"(?:async )?(\w+)\(")
        declared = names(block(DECLARED, f"class {kind}"), r"(\w+)\(")
        assert declared - {"addEventListener", "removeEventListener"} == own != set()


def test_declared_events_are_those_of_the_module():
    declared = names(block(DECLARED, "interface ReconnectingWebSocketEvents"), r"(\w+):")
    assert declared == set(re.findall(r"new (?:Message)?Event\(\"(\w+)\"", MODULE))
    fields = names(block(DECLARED, "interface ReconnectingCloseEvent"), r"readonly (\w+):")
    [given] = re.findall(r'new Event\("close"\), {(.*?), \.\.\.said', MODULE)
    [said] = re.findall(r"const said = {(.*)};", MODULE)
    assert fields == {*given.strip().split(", "), *re.findall(r"(\w+): ", said)}
