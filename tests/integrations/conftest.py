"""One server has the applications of all frameworks: each costs a second or two to start."""

import pytest

from tests.support.servers import serve


class Below:
    """What one application of that server looks like."""

    def __init__(self, server, name):
        self.url = f"{server.url}/{name}"
        self.host, self.name = server.url, name
        self.log, self.records, self.wait_for_records = server.log, server.records, server.wait_for_records


@pytest.fixture(scope="session")
def application(tmp_path_factory):
    """Return an application of the server, by its name in apps.py."""
    folder = tmp_path_factory.mktemp("frameworks")
    with serve("uvicorn-sansio", "tests.integrations.apps:app", folder, forked=True) as server:
        yield lambda name: Below(server, name)
