"""Requests to a local and to a remote host."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from fimserver.front.host_client import HttpHostClient, failure
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
