"""Requests to a local and to a remote host."""

import asyncio
import time
from types import SimpleNamespace

import httpx2
import pytest

from fimserver.front.host_answers import failure
from fimserver.front.host_client import HttpHostClient
from fimserver.reasons import Reason
from fimserver.wire import CompletionBody, EditorHints, SnippetBody

OWN = SimpleNamespace(state=lambda **_: None, problem="")
FILES = (SnippetBody(path="other.py", text="x = 1\n"),)


class NotingClient(HttpHostClient):
    """Keeps the body that it would have sent."""

    async def _post(self, body, watch):
        self.sent = body, watch
        return failure(Reason.END)


@pytest.mark.parametrize(("process", "files"), [(OWN, FILES), (None, ())], ids=["own", "elsewhere"])
def test_whole_files_go_to_a_host_of_this_machine_alone(process, files):
    client = NotingClient(lambda: None, process)
    hints = EditorHints(snippets=FILES, lookup=FILES)
    body = CompletionBody(prompt="a", fimserver=hints)
    asyncio.run(client.complete(body, deadline_s=time.monotonic() + 60, asked=False))
    sent, _ = client.sent
    assert sent.fimserver.lookup == files
    assert sent.fimserver.snippets == FILES


def test_whole_files_do_not_go_with_a_warm_up():
    client = NotingClient(lambda: None, OWN)
    body = CompletionBody(prompt="a", max_tokens=0, fimserver=EditorHints(snippets=FILES, lookup=FILES))
    asyncio.run(client.complete(body, deadline_s=time.monotonic() + 60, asked=False))
    sent, _ = client.sent
    assert (sent.fimserver.lookup, sent.fimserver.snippets) == ((), FILES)


class BreakingClient(HttpHostClient):
    """Its connection breaks at the first ``times`` requests, after ``shows`` was shown."""

    def __init__(self, times, process=None, shows=(), error=httpx2.ReadError):
        super().__init__(lambda: httpx2.AsyncClient(base_url="http://box"), process)
        self.sent = []
        self._times = times
        self._shows = shows
        self._error = error

    async def _post(self, body, watch):
        self.sent.append(body)
        for canvas in self._shows:
            watch(canvas)
        if len(self.sent) <= self._times:
            raise self._error("broken")
        return failure(Reason.END)


def asked(client, watch=None):
    body = CompletionBody(prompt="a", fimserver=EditorHints())
    return asyncio.run(
        client.complete(body, deadline_s=time.monotonic() + 60, asked=False, watch=watch)
    ).reason


@pytest.mark.parametrize("error", [httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError])
@pytest.mark.parametrize("watch", [None, lambda _: None], ids=["whole", "streamed"])
def test_a_remote_host_whose_connection_broke_is_asked_again_with_the_time_that_is_left(error, watch):
    client = BreakingClient(1, error=error)
    assert asked(client, watch) is Reason.END
    first, second = client.sent
    assert first.fimserver.deadline_ms > second.fimserver.deadline_ms > 0
    assert second.prompt == first.prompt


def test_it_is_asked_again_once():
    client = BreakingClient(2)
    assert asked(client) is Reason.NO_HOST
    assert len(client.sent) == 2


@pytest.mark.parametrize(
    ("process", "shows", "error"),
    [
        (None, [()], httpx2.ReadError),
        (OWN, (), httpx2.ReadError),
        (None, (), httpx2.ConnectError),
    ],
    ids=["a canvas was shown", "our own host", "nobody listens"],
)
def test_it_is_not_asked_again(process, shows, error):
    client = BreakingClient(1, process, shows, error)
    assert asked(client, lambda _: None) is Reason.NO_HOST
    assert len(client.sent) == 1
