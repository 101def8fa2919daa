"""``python -m tests.live.front_ends [DIRECTORY]``: count what real clients do at a server that is full.

It needs the extra ``test-frameworks``, Node and Chromium, and installs what it needs of npm into DIRECTORY, which keeps
that for the next run.
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

from tests.live.front_ends import libraries
from tests.live.front_ends.apps import WAYS
from tests.support.chromium import FLAGS, chromium
from tests.support.programs import program
from tests.support.servers import serve

HERE = Path(__file__).parent
NODE = ("socket.io-client", "graphql-ws", "graphql", "ws", *libraries.PACKAGES)
WATCHED_S = 10.0
PATIENCE_S = 60.0
PAGES = {"NiceGUI": "", "Streamlit": "", "marimo": "", "Chainlit": "/chat", "Shiny": ""}


def install(directory):
    """Fetch what is missing; return the environment variables that find it."""
    modules = directory / "node_modules"
    if not all((modules / package.removesuffix("@2")).exists() for package in NODE):
        subprocess.run(["npm", "install", "--silent", "--prefix", directory, *NODE], check=True)
    return {"NODE_PATH": str(modules)}


class Server:
    """One of the applications of ``apps.py``, served by uvicorn."""

    def __init__(self, running):
        host, port = running.address
        self.url = f"http://{host}:{port}"

    def ask(self, path, below=""):
        with urllib.request.urlopen(f"{self.url}{below}/-/{path}", timeout=10) as response:
            return json.load(response)

    def rejections(self, after=0.0):
        return [(at, how) for at, how in self.ask("handshakes") if how != "in" and at > after]

    def wait_for(self, how, after=0.0, within=60.0):
        """Return when the first handshake after that moment was answered so; None if none comes."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for at, answer in self.ask("handshakes"):
                if at > after and (answer == "in") is (how == "in"):
                    return at
            time.sleep(0.05)
        return None

    def count(self, seconds=WATCHED_S, after=0.0):
        """Wait for the first rejection; say how many handshakes were rejected from there on, and how."""
        if (first := self.wait_for("rejected", after)) is None:
            raise TimeoutError("no handshake was rejected in 60 s")
        end = first + seconds
        time.sleep(max(end + 0.1 - time.time(), 0))
        return [how for at, how in self.rejections(after) if at <= end]

    def admit_after(self, seconds, process):
        """Admit after so long; return when ``process`` had come in, in seconds since the first rejection, or None."""
        first = self.wait_for("rejected")
        time.sleep(max(first + seconds - time.time(), 0))
        self.ask("admit")
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.wait(40) == 0:
                return time.time() - first
        return None


def attempts(modes):
    return f"{len(modes)} attempts in {WATCHED_S:.0f} s ({modes.count('close')} closes, {modes.count('http')} HTTP)"


@contextlib.contextmanager
def opened(url):
    """A page of a browser of its own, and how often it was loaded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program("chromium"), args=FLAGS)
        page = browser.new_page()
        loads = []
        page.on("load", lambda _: loads.append(time.time()))
        page.goto(url)
        yield page, loads
        browser.close()


def page(server, env, name, most):
    """Count the attempts of a page that finds the server full."""
    server.ask("default")
    with opened(server.url + PAGES[name]):
        modes = server.count()
    return attempts(modes), len(modes) <= most


def way_back(server, path, way):
    """Say how often an open page tries that is turned away in that way for 10 s, and how soon it is back then."""
    with opened(server.url + path) as (page, loads):
        page.get_by_text("hello").wait_for(timeout=20_000)
        page.wait_for_timeout(1000)
        closed = time.time()
        server.ask(way.replace(" ", "-"))
        told, admitted = "", closed
        if WAYS[way] is not None:
            page.wait_for_timeout(1000 * WATCHED_S)
            told, admitted = f"{len(server.rejections(closed))} attempts, ", time.time()
            server.ask("admit")
        back = None
        while back is None and time.time() < admitted + PATIENCE_S:
            page.wait_for_timeout(100)  # its events are handled meanwhile
            back = server.wait_for("in", closed, 0.1)
        if back is None:
            return f"{told}not back in {PATIENCE_S:.0f} s"
        page.wait_for_timeout(3000)
        page.get_by_text("hello").wait_for(timeout=20_000)
        how = " by a reload" if any(at > closed for at in loads) else ""
        return f"{told}back{how} {f'after {back - admitted:.1f} s' if back > admitted else 'meanwhile, by HTTP'}"


def client(server, env, command, most):
    """Have a client come while the server is full for three seconds."""
    server.ask("default")
    with subprocess.Popen([*command, server.url], env={**os.environ, **env}) as process:
        try:
            took = server.admit_after(3.0, process)
        finally:
            process.kill()
    modes = [how for _, how in server.rejections()]
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
    for name, most in (("marimo", 12), ("Streamlit", 18), ("NiceGUI", 18), ("Chainlit", 18)):
        yield f"{name}'s page", name.lower(), partial(page, name=name, most=most), f"at most {most}"
    for name, app, command, most in (
        ("socket.io-client", "socket_io", ["node", HERE / "socket_io.cjs"], 10),
        ("python-socketio", "socket_io", [sys.executable, HERE / "socket_io_client.py"], 10),
        ("graphql-ws", "graphql", ["node", HERE / "graphql_ws.cjs"], 40),
    ):
        yield name, app, partial(client, command=command, most=most), f"in within {most} s"
    yield "200 browsers, one address", "crowd", crowd, "each first refusal is 1013"


@contextlib.contextmanager
def served(app, logs, env):
    logs.mkdir()
    env = {**env, "CHAINLIT_APP_ROOT": str(logs)}
    with serve("uvicorn {app} {uvicorn_bind} --factory", f"tests.live.front_ends.apps:{app}", logs, env=env) as running:
        yield Server(running)


def clients(only, logs, env):
    """Print the table of what clients do that find a server full; return whether they do what is wanted."""
    print("| client | does | wanted |\n|---|---|---|")
    all_good = True
    for name, app, run, wanted in front_ends():
        if only not in name:
            continue
        try:
            with served(app, logs / name.replace(" ", "-"), env) as server:
                told, is_good = run(server, env)
        except Exception as error:
            told, is_good = f"{type(error).__name__}: {str(error)[-300:]}", False
        all_good &= is_good
        print(f"| {name} | {told}{'' if is_good else ' **failed**'} | {wanted} |", flush=True)
    return all_good


def pages(only, logs, env):
    """Print the table of what open pages do, by the way in which they are turned away."""
    print(f"\n| page | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    for name, path in PAGES.items():
        if only not in name:
            continue
        print(f"| {name}", end="", flush=True)
        for way in WAYS:
            with served(name.lower(), logs / f"{name}-{way.replace(' ', '-')}", env) as server:
                print(f" | {way_back(server, path, way)}", end="", flush=True)
        print(" |", flush=True)


def of_npm(env, logs):
    """Print the table of what libraries do, by the way in which they are turned away."""
    with served("of_npm", logs / "of_npm", env) as server, chromium() as browser:
        libraries.table(server, browser, Path(env["NODE_PATH"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--only", default="", help="those whose name contains this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        env = install((options.directory or Path(temporary)).resolve())
        all_good = clients(options.only, Path(temporary), env)
        pages(options.only, Path(temporary), env)
        if options.only in "npm":
            of_npm(env, Path(temporary))
    sys.exit(not all_good)


if __name__ == "__main__":
    main()
