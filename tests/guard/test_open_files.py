"""Whether ``max_sessions`` fits the files that the process may open."""

import os
import resource

import pytest

from asgi_closecodes import Guard, Settings
from asgi_closecodes.events import FewFiles
from asgi_closecodes.guard import open_files
from tests.support.asgi import events_of
from tests.support.fakes import ConnectedClients

pytestmark = pytest.mark.anyio


@pytest.fixture
def allowed(monkeypatch):
    """Sets how many files this process may open, and how many it has open."""

    def allow(limit, already=20):
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, resource.RLIM_INFINITY))
        monkeypatch.setattr(open_files, "_open_files", lambda: already)

    return allow


def guard_of(seen, **settings):
    return Guard(Settings(**settings), observers=[seen.append])


@pytest.mark.parametrize(
    ("sessions", "limit", "is_delivered"),
    [
        (941, 1024, True),
        (940, 1024, False),
        (0, 83, True),
        (None, 10, False),
        (10**9, resource.RLIM_INFINITY, False),
    ],
)
async def test_limit_that_does_not_fit_is_told(allowed, sessions, limit, is_delivered):
    """``max_sessions``, what is open, and 64."""
    allowed(limit)
    async with guard_of(seen := [], max_sessions=sessions).lifespan():
        assert events_of(FewFiles, seen) == ([FewFiles(sessions, 20, limit, sessions + 84)] if is_delivered else [])


async def test_open_files_limit_is_told_once_in_many_lifespans(allowed):
    allowed(100)
    guard = guard_of(seen := [], max_sessions=50)
    async with guard.lifespan(), guard.lifespan(), ConnectedClients(guard) as stay:
        await stay.come(2)
    assert len(events_of(FewFiles, seen)) == 1


async def test_open_files_limit_without_lifespan_is_told_by_a_session(allowed):
    allowed(100)
    guard = guard_of(seen := [], max_sessions=50)
    assert not events_of(FewFiles, seen)
    async with ConnectedClients(guard) as stay:
        await stay.come(2)
        assert len(events_of(FewFiles, seen)) == 1


async def test_platform_without_such_a_limit_says_nothing(allowed, monkeypatch):
    allowed(100)
    monkeypatch.setattr(open_files, "resource", None)
    async with guard_of(seen := [], max_sessions=500).lifespan():
        assert not events_of(FewFiles, seen)


async def test_its_record_names_the_remedy(allowed, caplog):
    allowed(1024)
    async with guard_of([], max_sessions=1000).lifespan():
        [record] = [one for one in caplog.records if getattr(one, "event.name", "") == FewFiles.event_name]
    assert record.levelname == "WARNING"
    assert "let it open 1084 (ulimit -n, LimitNOFILE= of systemd), or lower max_sessions" in record.getMessage()


def test_open_files_are_counted_as_they_are():
    before = open_files._open_files()
    with open(os.devnull):
        assert open_files._open_files() == before + 1
