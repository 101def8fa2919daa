"""Libraries of npm that reconnect: how often each tries while it is turned away, with its defaults, in Chromium."""

import contextlib
import json
import time
from pathlib import Path

LIBRARIES = {
    "reconnecting-websocket": """
        const { default: Socket } = await import(`${MODULES}/dist/reconnecting-websocket-mjs.js`);
        new Socket(URL);""",
    "partysocket": """
        const { default: Socket } = await import(`${MODULES}/dist/ws.js`);
        new Socket(URL);""",
    "sockette": """
        const { default: Socket } = await import(`${MODULES}/dist/sockette.mjs`);
        new Socket(URL);""",
    "robust-websocket": """
        await load(`${MODULES}/robust-websocket.js`);
        new RobustWebSocket(URL);""",
    "@stomp/stompjs": """
        await load(`${MODULES}/bundles/stomp.umd.js`);
        new StompJs.Client({ brokerURL: URL }).activate();""",
    "phoenix": """
        const { Socket } = await import(`${MODULES}/priv/static/phoenix.mjs`);
        new Socket(URL).connect();""",
    "@rails/actioncable": """
        const { createConsumer } = await import(`${MODULES}/app/assets/javascripts/actioncable.esm.js`);
        createConsumer(URL).connect();""",
    "pusher-js": """
        await load(`${MODULES}/dist/web/pusher.js`);
        const { hostname, port, pathname } = new window.URL(URL);
        const here = { wsHost: hostname, wsPort: Number(port), wsPath: pathname, forceTLS: false };
        new Pusher("key", { ...here, enabledTransports: ["ws"], cluster: "" });""",
    "centrifuge": """
        await load(`${MODULES}/dist/centrifuge.js`);
        new Centrifuge(URL).connect();""",
    "htmx-ext-ws": """
        await load(`${MODULES}/../htmx.org/dist/htmx.js`);
        await load(`${MODULES}/dist/ws.js`);
        document.body.innerHTML = `<div hx-ext="ws" ws-connect="${URL}"></div>`;
        htmx.process(document.body);""",
}
PACKAGES = (*LIBRARIES, "htmx.org@2")
WAYS = {
    "default": "1013 or 503, by default",
    "1013": "1013",
    "503": "503",
    "1012": "1012",
    "1011": "1011 each time",
    "4001": "4001",
}
WATCHED_S = 10.0

_CONNECT = """async ([URL, MODULES]) => {
    const load = (source) => new Promise((resolve, reject) => {
        document.head.append(Object.assign(document.createElement("script"), { src: source, onload: resolve, onerror: reject }));
    });
    %s
}"""


def path_of(name):
    return "/" + name.strip("@").replace("/", "-")


def table(server, browser, modules):
    """Print how many attempts each library makes in ten seconds, by the way in which it is turned away."""
    print(f"\n| library | {' | '.join(WAYS.values())} |\n|---|{'---|' * len(WAYS)}", flush=True)
    attempts = {name: [version_of(modules / name)] for name in LIBRARIES}
    for way in WAYS:
        for name, seen in attempts.items():
            server.ask(way.replace(" ", "-"), path_of(name))
            seen.append(0)
        with contextlib.closing(browser.new_context()) as context:
            began = {name: connect(context, server, name, script) for name, script in LIBRARIES.items()}
            time.sleep(WATCHED_S + 5)
            for name, at in began.items():
                rejected = [when for when, how in server.ask("handshakes", path_of(name)) if how != "in" and when >= at]
                attempts[name][-1] = sum(when <= min(rejected) + WATCHED_S for when in rejected)
        for name in LIBRARIES:
            server.ask("admit", path_of(name))
    for name, (version, *counts) in attempts.items():
        print(f"| {name} {version} | {' | '.join(map(str, counts))} |", flush=True)


def connect(context, server, name, script):
    """Have a page of its own connect; return the moment before."""
    page = context.new_page()
    page.goto(f"{server.url}/page")
    at = time.time()
    page.evaluate(_CONNECT % script, [f"{server.url.replace('http', 'ws', 1)}{path_of(name)}", f"/modules/{name}"])
    return at


def version_of(package: Path):
    return ".".join(json.loads((package / "package.json").read_text())["version"].split(".")[:2])
