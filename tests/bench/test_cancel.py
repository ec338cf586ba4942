"""The time until a server is idle after its client hung up."""

import itertools

import pytest

from bench.cancel import Server, idle_after_s, is_idle_of, row
from fimserver.errors import InputError
from tests.hosts import ScriptedHost
from tests.servers_elsewhere import PlayedServer, sse

WORD = sse({"choices": [{"index": 0, "text": "x", "finish_reason": None}]})


def server_of(url):
    return Server("it", url, url)


@pytest.fixture
def host():
    with ScriptedHost() as host:
        host.engines.script = lambda *_: itertools.cycle(("x", 0.01))
        yield host


def test_a_host_is_idle_soon_after_and_worked_until_then(host):
    assert idle_after_s(server_of(host.url)) < 30
    assert len(host.engines.asked) == 1
    assert host.engines.stopped


def test_a_row_has_median_least_and_most(host):
    name, median, least, most = row(server_of(host.url), 3).strip("| ").split(" | ")
    assert name == "it"
    assert float(least) <= float(median) <= float(most)
    assert len(host.engines.asked) == 4


@pytest.mark.parametrize(
    ("answers", "idle"),
    [
        ({"/slots": (200, [{"is_processing": False}, {"is_processing": True}])}, False),
        ({"/slots": (200, [{"is_processing": False}])}, True),
        ({"/slots": (501, {}), "/metrics": (200, 'a 1\nvllm:num_requests_running{m="x"} 1.0\n')}, False),
        ({"/metrics": (200, 'vllm:num_requests_running{m="x"} 0.0\nb 1\n')}, True),
    ],
)
def test_each_kind_of_server_says_whether_it_works(answers, idle):
    with PlayedServer(answers) as server, server_of(server.url).client(server.url) as client:
        assert is_idle_of(client)() is idle


def test_one_that_does_not_say_it_is_refused():
    with (
        PlayedServer({}) as server,
        server_of(server.url).client(server.url) as client,
        pytest.raises(InputError, match="neither"),
    ):
        is_idle_of(client)


def test_one_that_had_ended_before_is_no_measurement():
    answers = {"/slots": (200, [{"is_processing": False}]), "/v1/completions": [WORD, WORD, 30.0]}
    with PlayedServer(answers) as server, pytest.raises(InputError, match="idle before"):
        idle_after_s(server_of(server.url))
