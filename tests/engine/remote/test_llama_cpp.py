"""A real llama.cpp server with the real 0.5B coder: both dialects, cancel, restart, keys, long prompts."""

import importlib.util
import time
from dataclasses import replace

import httpx2
import pytest

from fimserver.cards import ELSEWHERE, Card, Remote
from fimserver.engine.engines import ModelPool
from fimserver.engine.remote.engine import RemoteEngine
from fimserver.errors import AwayError, BadKeyError
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling, Snippet
from tests.coder import FILES, NAME, needs_coder
from tests.hosts import free_port
from tests.servers_elsewhere import LlamaServer

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"),
    needs_coder,
]
ADD = Request("def add(a, b):\n    return ", "\n\n\nprint(add(1, 2))\n", Sampling(max_tokens=8))
STORY = Request("# Why tests matter, at length:\n", "", Sampling(max_tokens=400, stop="none"))


@pytest.fixture(scope="module")
def server():
    with LlamaServer(FILES[0], free_port()) as running:
        yield running


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("FIMSERVER_REMOTE_KEY", LlamaServer.KEY)


def engine_of(server, dialect=""):
    return RemoteEngine(
        Card(name="elsewhere", remote=Remote(url=server.url, dialect=dialect), **ELSEWHERE), "ar"
    )


def middle(engine, request=ADD, deadline_ms=60_000):
    chunks = list(engine.complete(request, Deadline.of_ms(deadline_ms)))
    return "".join(chunk.text for chunk in chunks), chunks


@pytest.mark.parametrize("dialect", ["llama_cpp", "openai"])
def test_it_fills_a_middle_in_pieces_and_our_rules_end_it(server, dialect):
    text, chunks = middle(engine_of(server, dialect))
    assert text.strip() == "a + b"
    assert len([chunk for chunk in chunks if chunk.text]) > 1
    assert chunks[-1].reason is Reason.LINE


def test_a_url_is_a_card_with_the_name_of_its_model(server):
    pool = ModelPool(Settings(ar_card=server.url, dllm_card="nano"))
    assert pool.served()["ar"].startswith(f"{NAME}.at.127.0.0.1-")
    engine = pool.engine("ar")
    assert middle(engine)[0].strip() == "a + b"
    assert engine.server(Deadline()).about().startswith("llama.cpp ")


def test_other_files_reach_the_model(server):
    engine = engine_of(server, "openai")
    snippet = Snippet("shapes.py", "def hexagon_area(side):\n    return 2.598 * side * side\n")
    request = Request("from shapes import hexagon_", "\n", Sampling(max_tokens=4), snippets=(snippet,))
    assert middle(engine, request)[0] != middle(engine, replace(request, snippets=()))[0]


def test_hanging_up_stops_the_server(server):
    engine = engine_of(server)
    deadline = Deadline.of_ms(60_000)
    chunks = engine.complete(STORY, deadline)
    next(chunks)
    deadline.cancelled.set()
    assert list(chunks)[-1].reason is Reason.CANCELLED
    end = time.monotonic() + 60
    headers = {"Authorization": f"Bearer {server.KEY}"}
    while httpx2.get(f"{server.url}/slots", headers=headers).json()[0]["is_processing"]:
        assert time.monotonic() < end, "it goes on"


def test_time_up_gives_what_is_there(server):
    deadline = Deadline.of_ms(60_000)
    chunks = engine_of(server).complete(STORY, deadline)
    text = ""
    while not text:
        text += next(chunks).text
    object.__setattr__(deadline, "expires_s", time.monotonic())  # now
    *_, last = chunks
    assert last.reason is Reason.DEADLINE


def test_a_wrong_key_is_said(server, monkeypatch):
    monkeypatch.setenv("FIMSERVER_REMOTE_KEY", "wrong")
    with pytest.raises(BadKeyError, match="FIMSERVER_REMOTE_KEY"):
        middle(engine_of(server))


def test_a_prompt_longer_than_its_context_is_cut_by_its_own_count(server):
    lines = "".join(f"x{i} = compute({i * 7919}, 0x{i:08x})\n" for i in range(200))
    request = Request(lines + "y = compute(", lines, Sampling(max_tokens=1))
    engine = engine_of(server, "openai")
    assert middle(engine, request)[1][-1].reason
    assert engine.rate.known


def test_a_restart_in_mid_answer_is_one_failure_and_the_next_request_works():
    with LlamaServer(FILES[0], free_port()) as server:
        engine = engine_of(server)
        chunks = engine.complete(STORY, Deadline.of_ms(60_000))
        next(chunks)
        server.kill()
        with pytest.raises(AwayError, match="closed the connection"):
            list(chunks)
        server.start()
        end = time.monotonic() + 60
        while True:
            try:
                assert middle(engine)[0].strip() == "a + b"
                break
            except AwayError:  # for the time of its back-off
                assert time.monotonic() < end
                time.sleep(0.05)
