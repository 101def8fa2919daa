"""``python -m tests.integrations.own_commands KIND --host HOST --port PORT``: serve a recipe as its framework does."""

import argparse
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

from asgi_closecodes import Guard
from tests.integrations.recipes import code_of, follow
from tests.live.front_ends.apps import HERE

HEAD = "from asgi_closecodes import CloseCodeMiddleware, Guard\n\nguard = Guard()\n"


def nicegui(directory, host, port):
    from nicegui import app, ui

    @ui.page("/")
    def index():
        ui.label("hello")

    follow("NiceGUI", app=app, guard=Guard())
    ui.run(host=host, port=port, reload=False, show=False)


def streamlit(directory, host, port):
    (directory / "app.py").write_text(HEAD + code_of("Streamlit"))
    run("streamlit", f"run app.py --server.address {host} --server.port {port} --server.headless true")


def chainlit(directory, host, port):
    chat = (directory / "chat.py").read_text()
    (directory / "chat.py").write_text(f"{HEAD}from chainlit.server import app\n{code_of('Chainlit')}\n{chat}")
    run("chainlit", f"run chat.py --host {host} --port {port} --headless")


def run(command, options):
    sys.argv = [command, *options.split()]
    runpy.run_module(command, run_name="__main__", alter_sys=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["nicegui", "streamlit", "chainlit"])
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # with it NiceGUI is another
    with tempfile.TemporaryDirectory() as directory:
        for name in ("chat.py", "script.py"):
            shutil.copy(HERE / name, directory)
        os.chdir(directory)
        globals()[options.kind](Path(directory), options.host, options.port)


if __name__ in ("__main__", "__mp_main__"):
    main()
