import contextlib
import socket
import threading

import pytest
import trustme

from tests.support.servers import serve

from .app import APP


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    env = {"CLOSECODES_LOG_BURST": "1"}
    with serve("uvicorn-sansio", APP, tmp_path_factory.mktemp("server"), env=env, forked=True) as running:
        yield running


@pytest.fixture
def limited(tmp_path):
    """Starts a server with settings."""
    with contextlib.ExitStack() as stack:
        yield lambda **env: stack.enter_context(serve("uvicorn-sansio", APP, tmp_path, env=env, forked=True))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A private one, as a file, with a certificate of 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    made = trustme.CA()
    made.cert_pem.write_to_path(folder / "ca.pem")
    made.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return folder


@pytest.fixture(scope="module")
def secure(tmp_path_factory, authority):
    options = ("--ssl-certfile", str(authority / "server.pem"))
    with serve("uvicorn-sansio", APP, tmp_path_factory.mktemp("secure"), *options, forked=True) as running:
        yield running


@pytest.fixture
def says():
    """Starts something that answers every connection with the same bytes, and hangs up; returns its address."""
    with contextlib.ExitStack() as stack:

        def start(answer):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            stack.callback(listener.shutdown, socket.SHUT_RDWR)

            def serve_all():
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = listener.accept()
                        with connection:
                            connection.recv(4096)
                            connection.sendall(answer)

            threading.Thread(target=serve_all, daemon=True).start()
            return f"ws://127.0.0.1:{listener.getsockname()[1]}/"

        yield start
