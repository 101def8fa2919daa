"""Every test that awaits runs on asyncio and on trio."""

import pytest
from hypothesis import settings

settings.register_profile("tests", deadline=None)  # a busy machine is no failure
settings.load_profile("tests")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param
