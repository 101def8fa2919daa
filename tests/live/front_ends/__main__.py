"""``python -m tests.live.front_ends [DIRECTORY]``: count what real clients do at a server that is full.

It installs marimo, Streamlit, NiceGUI, python-socketio, socket.io-client and graphql-ws into DIRECTORY, which keeps
them for the next run; Node and Chromium have to be there. Nothing in the running environment changes.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path

import websockets
from playwright.sync_api import sync_playwright

from tests.support.chromium import FLAGS
from tests.support.programs import program
from tests.support.servers import ROOT, serve

HERE = Path(__file__).parent
PYTHON = ("marimo", "streamlit", "nicegui", "python-socketio", "requests", "websocket-client")
NODE = ("socket.io-client", "graphql-ws", "graphql", "ws")
WATCHED_S = 10.0


def install(directory):
    """Fetch what is missing; return the environment variables that find it."""
    site = directory / "site-packages"  # Streamlit that is elsewhere takes itself for its sources
    modules = directory / "node_modules"
    if not site.exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", site, *PYTHON], check=True)
    if not modules.exists():
        subprocess.run(["npm", "install", "--silent", "--prefix", directory, *NODE], check=True)
    return {"PYTHONPATH": f"{ROOT}:{site}", "NODE_PATH": str(modules)}


class Server:
    """One of the applications of ``apps.py``, served by uvicorn."""

    def __init__(self, running):
        host, port = running.address
        self.url = f"http://{host}:{port}"

    def ask(self, path):
        with urllib.request.urlopen(f"{self.url}/-/{path}", timeout=10) as response:
            return json.load(response)

    def rejections(self):
        return self.ask("rejections")

    def first(self):
        """Wait for the first rejection; return when it was."""
        deadline = time.monotonic() + 60
        while not (seen := self.rejections()):
            if time.monotonic() > deadline:
                raise TimeoutError("no handshake came in 60 s")
            time.sleep(0.05)
        return seen[0][0]

    def count(self, seconds=WATCHED_S):
        """Wait for the first rejection; say how many handshakes were rejected from there on, and how."""
        end = self.first() + seconds
        time.sleep(max(end + 0.1 - time.time(), 0))
        return [mode for at, mode in self.rejections() if at <= end]

    def admit_after(self, seconds, process):
        """Admit after so long; return when ``process`` had come in, in seconds since the first rejection, or None."""
        first = self.first()
        time.sleep(max(first + seconds - time.time(), 0))
        self.ask("admit")
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.wait(40) == 0:
                return time.time() - first
        return None


def attempts(modes):
    return f"{len(modes)} attempts in {WATCHED_S:.0f} s ({modes.count('close')} closes, {modes.count('http')} HTTP)"


def page(server, env, most):
    """Count a page's attempts; ``most`` is None where it is enough that it works in the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program("chromium"), args=FLAGS)
        opened = browser.new_page()
        opened.goto(server.url)
        modes = server.count()
        if most is None:
            opened.get_by_text("hello").wait_for(timeout=5000)
        browser.close()
    return attempts(modes), most is None or len(modes) <= most


def client(server, env, command, most):
    """Have a client come while the server is full for three seconds."""
    with subprocess.Popen([*command, server.url], env={**os.environ, **env}) as process:
        try:
            took = server.admit_after(3.0, process)
        finally:
            process.kill()
    modes = [mode for _, mode in server.rejections()]
    told = f"{modes.count('close')} closes, {modes.count('http')} HTTP"
    return f"{'never in' if took is None else f'in after {took:.1f} s'} ({told})", took is not None and took <= most


def crowd(server, env):
    """200 clients behind one address, each with a cookie of its own, that obey a hint of four seconds: 50 refusals a second."""
    return asyncio.run(_crowd(server.url.replace("http", "ws", 1)))


async def _crowd(url):
    async def visit(number):
        await asyncio.sleep(number / 50)
        codes = []
        for _ in range(3):
            headers = {"cookie": f"session={number}"}
            try:
                async with websockets.connect(url, additional_headers=headers, proxy=None) as websocket:
                    await websocket.wait_closed()
                    codes.append(websocket.close_code)
            except websockets.InvalidStatus as refused:
                codes.append(refused.response.status_code)
            await asyncio.sleep(4.0 + random.random() / 10)
        return codes

    seen = await asyncio.gather(*map(visit, range(200)))
    first, later = [codes[0] for codes in seen], [code for codes in seen for code in codes[1:]]
    return f"{first.count(1013)} of 200 first refusals are 1013, {later.count(1013)} of 400 later ones", {*first} == {
        1013
    }


def front_ends():
    """Yield what is run: a name, its application, a function of its server, and the result that is wanted."""
    yield "marimo's page", "marimo", partial(page, most=12), "at most 12"
    yield "Streamlit's page", "streamlit", partial(page, most=18), "at most 18"
    yield "NiceGUI's page", "nicegui", partial(page, most=None), "works"
    for name, app, command, most in (
        ("socket.io-client", "socket_io", ["node", HERE / "socket_io.cjs"], 10),
        ("python-socketio", "socket_io", [sys.executable, HERE / "socket_io_client.py"], 10),
        ("graphql-ws", "graphql", ["node", HERE / "graphql_ws.cjs"], 40),
    ):
        yield name, app, partial(client, command=command, most=most), f"in within {most} s"
    yield "200 browsers, one address", "crowd", crowd, "each first refusal is 1013"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--only", default="", help="those whose name contains this")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        env = install((options.directory or Path(temporary)).resolve())
        print("| client | does | wanted |\n|---|---|---|")
        for name, app, run, wanted in front_ends():
            if options.only not in name:
                continue
            logs = Path(temporary) / name.replace(" ", "-")
            logs.mkdir()
            try:
                with serve(
                    "uvicorn {app} {uvicorn_bind} --factory", f"tests.live.front_ends.apps:{app}", logs, env=env
                ) as one:
                    told, is_good = run(Server(one), env)
            except Exception as error:
                told, is_good = f"{type(error).__name__}: {str(error)[-300:]}", False
            failed |= not is_good
            print(f"| {name} | {told}{'' if is_good else ' **failed**'} | {wanted} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
