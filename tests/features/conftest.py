"""Every behaviour twice: against a server in this process, and against a real one over pipes."""

import pytest

from tests.editor import Editor
from tests.hosts import ScriptedHost


@pytest.fixture
def host():
    with ScriptedHost() as host:
        yield host


@pytest.fixture(params=["process", "pipes"])
def connected(request, host):
    """An editor that has not shaken hands yet."""
    with Editor(request.param, host.url) as editor:
        yield editor


@pytest.fixture
def editor(connected):
    connected.start()
    return connected
