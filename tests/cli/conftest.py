import time

import pytest


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    """Times are printed as those of this place."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
