"""HTML and JavaScript on the pages, run in Chromium with the package's own module."""

import json
from collections.abc import Iterator
from importlib.resources import files

from playwright.sync_api import Browser

from .pages import Block

_MODULE = files("asgi_closecodes.client") / "reconnecting-websocket.js"
_ORIGIN = "http://page.test"
_PACKAGES = {
    "graphql-ws": "export const createClient = (options) => new WebSocket(options.url)",
    "socket.io-client": "export const io = () => ({ on() {}, disconnect() {} })",
}
"""Stand-ins for npm's."""
_IMPORTS = {"imports": {name: f"data:text/javascript,{source}" for name, source in _PACKAGES.items()}}


def broken_script(block: Block, browser: Browser) -> Iterator[str]:
    """Yield what Chromium complains of."""
    problems = []
    html = block.source if block.language == "html" else f'<script type="module">{block.source}</script>'
    html = f'<script type="importmap">{json.dumps(_IMPORTS)}</script>{html}'

    def answer(route):
        path = route.request.url.removeprefix(_ORIGIN)
        if path == "/":
            route.fulfill(body=html, content_type="text/html")
        elif path.endswith(f"/{_MODULE.name}"):
            route.fulfill(body=_MODULE.read_text(encoding="utf-8"), content_type="text/javascript")
        else:
            route.fulfill(status=404)

    with browser.new_context() as context:
        page = context.new_page()
        page.route("**/*", answer)
        page.route_web_socket("**/*", lambda socket: socket.on_message(socket.send))
        # The event has a line, which playwright's own does not tell: that of the code, not of the stack.
        page.add_init_script("onerror = (text, _, line) => console.log(`broken:${line}:${text}`)")
        page.add_init_script("onunhandledrejection = ({ reason }) => console.log(`broken:1:${reason}`)")
        page.on("console", lambda message: problems.append(message.text))
        page.goto(_ORIGIN, wait_until="load")
        page.evaluate("0")  # what was logged until here has arrived
    for text in problems:
        if text.startswith("broken:"):
            _, line, why = text.split(":", 2)
            yield block.problem(int(line) - 1, why)
