"""A host with scripted engines, one for each module of tests."""

import pytest

from fimserver.host.routing.router import Router
from tests.hosts import ScriptedHost


@pytest.fixture(scope="module")
def shared():
    with ScriptedHost() as host:
        yield host


@pytest.fixture
def host(shared):
    """The module's host, without what an earlier test did to it: every middle ends at once."""
    shared.says("x", "y")
    shared.scheduler.router = Router("always_ar")
    shared.engines.asked.clear()
    shared.engines.warmed.clear()
    shared.engines.stopped.clear()
    return shared
