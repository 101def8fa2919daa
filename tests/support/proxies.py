"""nginx and haproxy in front of a server, configured as asgi_closecodes/README.md says."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .ports import free_port
from .programs import program

README = Path(__file__).parents[2] / "asgi_closecodes/README.md"
START_S = 10

NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {recipe}
}}
"""
"""The rest of a configuration, around a recipe."""

PROXIES = ("nginx", "haproxy")


def _recipe(language: str) -> str:
    recipe: str
    [recipe] = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert "127.0.0.1:8000" in recipe
    return recipe


class Proxy:
    """Running proxy."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.address = "127.0.0.1", port
        self._source = source

    @property
    def url(self) -> str:
        return "ws://{}:{}".format(*self.address)

    def connect(self) -> socket.socket:
        """Return a plain socket."""
        return socket.create_connection(self.address, 10, (self._source, 0))

    def client(self, source: str) -> Proxy:
        """Return this proxy for clients with the address ``source``."""
        return Proxy(self.address[1], source)


@contextlib.contextmanager
def proxy(name: str, server: Any, directory: Path) -> Iterator[Proxy]:
    """Run the proxy ``name`` in front of ``server``."""
    path = program(name, "nginx-light" if name == "nginx" else None)
    port = free_port()
    recipe = _recipe(name).replace("127.0.0.1:8000", "{}:{}".format(*server.address))
    config = directory / f"{name}.conf"
    if name == "nginx":
        server_block = f"server {{ listen 127.0.0.1:{port}; {recipe} }}"
        config.write_text(NGINX.format(directory=directory, recipe=server_block))
        command = [path, "-p", str(directory), "-c", str(config)]
    else:
        assert "bind :80\n" in recipe
        config.write_text(recipe.replace("bind :80\n", f"bind 127.0.0.1:{port}\n"))
        command = [path, "-db", "-f", str(config)]
    with (directory / f"{name}.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    running = Proxy(port)
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                running.connect().close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ChildProcessError((directory / f"{name}.log").read_text()) from None
                time.sleep(0.02)
        yield running
    finally:
        process.kill()
        process.wait()
